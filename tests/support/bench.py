"""The keys of a measurement in JSON, and the metrics of a real server."""

KEYS = {
    "cache_tokens",
    "max_running",
    "request_throughput",
    "output_throughput",
    "ttft_ms",
    "tpot_ms",
    "preemptions",
    "peak_memory_bytes",
}
# Answer of a vLLM 0.32 under load.
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/models/original"} 4.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason. Reason labels: \
'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints \
(LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="/models/original",reason="capacity"} 9.0
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="/models/original"} 3.0
# HELP vllm:num_preemptions_created Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_created gauge
vllm:num_preemptions_created{engine="0",model_name="/models/original"} 1.7955324063707728e+09
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="/models/original"} 300.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="/models/original"} 17.0
"""
