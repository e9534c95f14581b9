"""The training engine: DeepSpeed behind a small front. Nothing outside this folder imports deepspeed, and nothing in it does
before `start_ranks`: settings, sampling and help must not wait for it."""
