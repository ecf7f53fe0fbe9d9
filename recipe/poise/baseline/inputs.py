"""What the probe is given of a step's rows: features, and how much each row's score weighs.

With a log-prob pass both are in the stream that the engine has filled. Without one, states come from the pass over the
step's prompts, which may have run on another rank, and energies from the rollout's own log-probs. Outputs of one agent
loop's session are put together here.

Shapes: B rows on this rank, N rows of all ranks, P prompts of the step, F features, D hidden size.
"""

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from probe import DistributedBank
from recipe.poise.capture.energy import response_weights
from recipe.poise.capture.engine import flat
from recipe.poise.capture.stream import STREAM, CaptureSettings

# (B, 2) int64, where a session has several outputs: its number, whether it is the first
SESSION_FIELD = "poise_session"
ROLLOUT_FIELDS = ["rollout_log_probs", "response_mask"]


def rollout_weights(data: TensorDict, settings: CaptureSettings) -> Tensor:
    """(B, 2) energy and length of each row, from the rollout's log-probs of its own tokens.

    Raises:
        ValueError: another number of log-probs than of response tokens.
    """
    log_prob, mask = data["rollout_log_probs"], data["response_mask"]
    length_B = torch.tensor([len(row) for row in mask.unbind()])
    if [len(row) for row in log_prob.unbind()] != length_B.tolist():
        raise ValueError(
            "the rollout gave another number of log-probs than of response tokens: with "
            "algorithm.rollout_correction.bypass_mode=True the agent loop must give response_logprobs for each token "
            "of response_ids (0 for a tool's)"
        )
    log_prob_Y, mask_Y = (torch.cat(list(x.unbind())) for x in (log_prob, mask))
    length_B = length_B.to(mask_Y.device)
    return response_weights(log_prob_Y, mask_Y, length_B, settings.loss_agg_mode, form=settings.energy)


def passed_prompts(gather: Callable[[Tensor], Tensor | None], number_R: Tensor) -> Tensor | None:
    """(R, D) states of prompts from the last pass over prompts, on whichever ranks it ran; None where `gather` gives
    nothing.

    Args:
        gather: `DistributedBank.collect` or `share`. number_R: int64; the prompts' numbers in that pass.

    Raises:
        RuntimeError: a prompt that the pass has not seen, or one twice.
    """
    id_N, state_ND = STREAM.take_prompts()
    mine_N = id_N >= 0 if STREAM.collects else torch.zeros_like(id_N, dtype=torch.bool)
    # float32 holds ids up to 16 million
    gathered_PC = gather(torch.cat([id_N[mine_N].float().unsqueeze(1), state_ND[mine_N]], dim=1))
    if gathered_PC is None:
        return None
    gathered_PC = gathered_PC[gathered_PC[:, 0].argsort()]
    known_P = gathered_PC[:, 0].long()
    whole = torch.equal(known_P, torch.arange(len(known_P), device=known_P.device))
    if not whole or (len(number_R) and int(number_R.max()) >= len(known_P)):
        raise RuntimeError(f"the prompt pass saw {len(known_P)} prompts: one is missing that is wanted, or came twice")
    return gathered_PC[number_R.to(known_P.device), 1:]


def join_sessions(
    bank: DistributedBank, session_B2: Tensor, feature_BF: Tensor, weight_B2: Tensor, prompt: slice
) -> tuple[Tensor, Tensor]:
    """Features and weights (B, 2) of rows that stand for whole sessions.

    A session's score is the sum of its outputs' scores, so its energy and length are sums over its outputs. A later
    output's prompt holds what the policy has said before: the prompt's state is the first one's.

    Args:
        session_B2: the session's number, and 1 for its first output.
        prompt: where the prompt's state stands in a row; an empty slice: nowhere.
    """
    width = len(range(*prompt.indices(feature_BF.shape[1])))
    mine_B = torch.full((len(session_B2),), STREAM.collects, dtype=torch.bool, device=session_B2.device)
    own_BC = torch.cat([session_B2.double(), weight_B2.double(), feature_BF[:, prompt].double()], dim=1)
    shared_NC = bank.share(own_BC[mine_B])
    session_N, first_N = shared_NC[:, 0].long(), shared_NC[:, 1] > 0
    size = int(torch.cat([session_N, session_B2[:, 0]]).max()) + 1
    sum_S2 = shared_NC.new_zeros(size, 2).index_add_(0, session_N, shared_NC[:, 2:4])
    feature_BF = feature_BF.clone()
    if width:
        state_SD = shared_NC.new_full((size, width), float("nan"))
        state_SD[session_N[first_N]] = shared_NC[first_N, 4:]
        feature_BF[:, prompt] = state_SD[session_B2[:, 0]].to(feature_BF)
    return feature_BF, sum_S2[session_B2[:, 0]].to(weight_B2)


def step_inputs(
    bank: DistributedBank, data: TensorDict, row_B4: Tensor, states: tuple[str, ...], bypass: bool
) -> tuple[Tensor, Tensor]:
    """Features (B, F), without the reward, and energy and length (B, 2) of a step's rows, on the stream's device.

    Args:
        row_B4: as in ``ROW_FIELD``. states: the features that are states, which come first.
        bypass: whether the step has no log-prob pass.
    """
    settings = STREAM.settings
    assert settings is not None
    if bypass:
        weight_B2 = rollout_weights(data, settings).to(row_B4.device)
        feature_BF = weight_B2[:, :0]
        if states:
            shared_BD = passed_prompts(bank.share, row_B4[:, 1])
            assert shared_BD is not None  # it gives every rank the rows
            feature_BF = shared_BD
    else:
        feature_BF, weight_B2 = STREAM.lookup(row_B4[:, 0]), STREAM.lookup_weights(row_B4[:, 0])
    if SESSION_FIELD in data:
        session_B2 = flat(data[SESSION_FIELD]).to(row_B4.device)
        # in a pass over prompts there are the first ones alone
        place = slice(0, STREAM.hidden_size) if "prompt" in states and not bypass else slice(0, 0)
        feature_BF, weight_B2 = join_sessions(bank, session_B2, feature_BF, weight_B2, place)
    return feature_BF, weight_B2
