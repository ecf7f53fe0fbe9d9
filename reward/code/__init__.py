"""Programs that a model wrote, run against test cases: in a SandboxFusion server, or in a local sandbox."""
