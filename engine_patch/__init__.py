"""vNPU inside a vLLM engine, through vLLM's public extension points."""
