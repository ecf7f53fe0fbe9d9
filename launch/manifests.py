"""The same run for Kubernetes (KubeRay's RayJob) and for SkyPilot."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from launch import quoting
from launch.environment import check_public, public_environment, secrets
from launch.rayjob import ENTRYPOINT, check_folder, job_environment
from launch.runfile import RunFile, RunFileError

PROJECT = "/workspace"  # where the image has the project
LONGEST_NAME = 47  # of a RayJob: KubeRay adds to it for the cluster's services


def _variables(run: RunFile) -> dict[str, str]:
    check_folder(run)
    check_public("the manifest", run.to_json(), run)
    return job_environment(run)


def _resource_name(run: RunFile) -> str:
    """Raises RunFileError where KubeRay would refuse the name, which it tells to nobody."""
    name = re.sub("[._]", "-", run.name.lower())
    if len(name) > LONGEST_NAME or not re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", name):
        raise RunFileError(
            f"name: {run.name}: as a name in Kubernetes it must begin with a letter, end with a letter or digit, and "
            f"have at most {LONGEST_NAME} characters; give the run another"
        )
    return name


def _pod(run: RunFile, name: str) -> dict[str, Any]:
    """A pod with one node's devices; the run's volume at the parent of its folder, tokens from a Secret."""
    resources: dict[str, Any] = {"cpu": str(run.kubernetes.cpus), "memory": run.kubernetes.memory}
    if run.accelerator == "gpu":
        resources["nvidia.com/gpu"] = str(run.gpus_per_node)
    container: dict[str, Any] = {
        "name": name,
        "image": run.kubernetes.image,
        "workingDir": PROJECT,
        "env": [{"name": key, "value": quoting.kubernetes(value)} for key, value in public_environment(run).items()],
        "resources": {"limits": resources, "requests": resources},
        "volumeMounts": [
            {"name": "runs", "mountPath": str(run.root.parent)},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if run.kubernetes.secret:
        container["envFrom"] = [{"secretRef": {"name": run.kubernetes.secret}}]
    if name == "ray-head":
        ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
        container["ports"] = [{"name": key, "containerPort": port} for key, port in ports.items()]
    volumes = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": run.kubernetes.volume_claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # Kubernetes gives 64 MB otherwise
    ]
    return {"spec": {"containers": [container], "volumes": volumes}}


def kuberay(run: RunFile) -> str:
    """A RayJob. `backoffLimit` starts a failed job on a new cluster, where it goes on from its newest checkpoint."""
    start = {"num-gpus": str(run.gpus_per_node)}
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(ENTRYPOINT),
        "runtimeEnvYAML": _dump({"env_vars": _variables(run)}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "submissionMode": "K8sJobMode",
        "backoffLimit": run.resume.max_crashes,
        "rayClusterSpec": {
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0", **start},
                "template": _pod(run, "ray-head"),
            }
        },
    }
    if run.nodes > 1:
        spec["rayClusterSpec"]["workerGroupSpecs"] = [
            {
                "groupName": "workers",
                "replicas": run.nodes - 1,
                "minReplicas": run.nodes - 1,
                "maxReplicas": run.nodes - 1,
                "rayStartParams": start,
                "template": _pod(run, "ray-worker"),
            }
        ]
    metadata = {"name": _resource_name(run), "namespace": run.kubernetes.namespace}
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}
    return "# Apply with: kubectl apply -f FILE. The image holds the project, installed, in /workspace.\n" + _dump(
        manifest
    )


SKY_SETUP = """\
source launch/env.sh
poise_env {accelerator}
"""

# Marks in the attempt's folder end the nodes: it must be on the shared bucket, as the whole run is. The addresses are
# in its name, as a recovered task has the id of the one before, whose marks must not end it.
SKY_RUN = """\
set -euo pipefail
source launch/env.sh
poise_env {accelerator}
LOGS={logs}/"${{SKYPILOT_TASK_ID}}_$(cksum <<<"$SKYPILOT_NODE_IPS" | cut -d ' ' -f 1)"
mkdir -p "$LOGS"
printf '%s' "$POISE_RUN" >"$LOGS/run-$SKYPILOT_NODE_RANK.json"
HEAD=$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):{port}
if [[ $SKYPILOT_NODE_RANK != 0 ]]; then
  exec python -m launch node --run "$LOGS/run-$SKYPILOT_NODE_RANK.json" --logs "$LOGS" --head "$HEAD"
fi
rm -f "$LOGS/teardown"
trap 'touch "$LOGS/teardown"; wait' EXIT
python -m launch node --run "$LOGS/run-0.json" --logs "$LOGS" &
python -m launch wait --address "$HEAD" --nodes {nodes} --devices {devices} --timeout {timeout} --attempt "$LOGS"
RAY_ADDRESS=$HEAD python -m launch job
"""


def skypilot(run: RunFile) -> str:
    """A SkyPilot task: one Ray cluster of its own, beside the one that SkyPilot uses itself."""
    task: dict[str, Any] = {
        "name": _resource_name(run),
        "num_nodes": run.nodes,
        "workdir": ".",
        "resources": {"disk_size": run.sky.disk_gb},
    }
    if run.accelerator == "gpu":
        task["resources"]["accelerators"] = f"{run.sky.accelerator}:{run.gpus_per_node}"
    else:
        task["resources"]["cpus"] = f"{run.slurm.cpus_per_node}+"
    task["envs"] = _variables(run)
    if found := sorted(name for name in secrets(run).values if quoting.VARIABLE.fullmatch(name)):
        task["secrets"] = dict.fromkeys(found)  # names only; null: given by `sky launch --secret NAME`
    if run.sky.bucket:
        task["file_mounts"] = {str(run.root.parent): {"source": run.sky.bucket, "mode": "MOUNT"}}
    task["setup"] = SKY_SETUP.format(accelerator=run.accelerator)
    task["run"] = SKY_RUN.format(
        accelerator=run.accelerator, logs=quoting.shell(run.root / "sky"), port=run.ports.gcs, nodes=run.nodes,
        devices=run.gpus_per_node, timeout=run.waits.nodes_s,
    )  # fmt: skip
    names = "".join(f" --secret {name}" for name in found)
    return f"# Launch from the project's folder with: sky launch{names} FILE\n" + _dump(task)


class _Dumper(yaml.SafeDumper):
    """Several lines as a block, and no anchors: for readers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str):
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _dump(value: dict[str, Any]) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100_000)


def write_path(run: RunFile, kind: str) -> Path:
    return run.root / f"launch/{kind}.yaml"
