"""KV pull: a decode engine takes a request's KV cache from prefill engines of any tensor-parallel size."""
