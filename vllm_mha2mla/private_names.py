"""The names of transformers, PyTorch and vLLM that are used and are no public interface.

Any release may change them. ``tests/unit/test_private_names.py`` looks for each in the installed
release, without importing it, and says what changed and which file of ours to look at.
``attention/vllm_releases.py`` has what differs between the releases of vLLM that are served.
"""

from typing import NamedTuple


class PrivateName(NamedTuple):
    """A name that may change with any release.

    Attributes:
        name: ``module:Class.name``, in the class that defines it.
        parameters: of a function that is overridden or replaced, all of them, where releases
            differ with a ``|`` between; of one that is called, behind ``...``, those that are
            given. Of a class its constructor's, or its fields. Empty: none, or no function.
        used_in: the file of ours.
        why: what it is used for.
    """

    name: str
    parameters: str
    used_in: str
    why: str


_TRAINER = "conversion/healing/private_apis.py"
_MAKE = "vllm_mha2mla/hf/make.py"
_ATTENTION = "vllm_mha2mla/hf/attention.py"
_LAYER = "vllm_mha2mla/attention/layer.py"
_BACKEND = "vllm_mha2mla/attention/backend.py"
_CUDA = "vllm_mha2mla/attention/cuda_backend.py"
_WORKER = "vllm_mha2mla/cpu_worker.py"
_FLASH = "vllm_mha2mla/kernels/cuda/flash.py"
_LLAMA = "vllm_mha2mla/models/llama.py"
_FAMILIES = "vllm_mha2mla/models/transformers_backend.py"

_MODELLING = "transformers.modeling_utils:PreTrainedModel"
_MODULE = "torch.nn.modules.module:Module"

TRANSFORMERS_NAMES = (
    PrivateName(
        "transformers.trainer:Trainer._save_rng_state",
        "self, output_dir",
        _TRAINER,
        "the last file of a training checkpoint that every process writes",
    ),
    PrivateName(
        "transformers.trainer:Trainer.compute_loss",
        "self, model, inputs, return_outputs, num_items_in_batch",
        "conversion/healing/trainer.py",
        "the losses of healing",
    ),
    PrivateName(
        "transformers.training_args:TrainingArguments._n_gpu",
        "",
        _TRAINER,
        "one device per process; otherwise several visible GPUs become DataParallel",
    ),
    PrivateName(
        f"{_MODELLING}._keep_in_fp32_modules_strict",
        "",
        _MAKE,
        "constants stay in float32 when a model is loaded in 16 bits",
    ),
    PrivateName(
        f"{_MODELLING}._can_record_outputs", "", _MAKE, "output_attentions finds our attention"
    ),
    PrivateName(f"{_MODELLING}._supports_flash_attn", "", _MAKE, "wider heads than it takes"),
    PrivateName(f"{_MODELLING}._supports_flex_attn", "", _MAKE, "not tested with latents"),
    PrivateName(
        "transformers.configuration_utils:PreTrainedConfig._attn_implementation",
        "self",
        f"{_ATTENTION}, conversion/layers/original.py, conversion/healing/models.py",
        "the attention function that was asked for",
    ),
    PrivateName(
        "transformers.modeling_utils:AttentionInterface.get_interface",
        "self, attn_implementation, default",
        _ATTENTION,
        "the attention function of that name",
    ),
    PrivateName(
        f"{_MODELLING}._load_pretrained_model",
        "model, state_dict, checkpoint_files, load_config, expected_keys",
        "vllm_mha2mla/hf/loading.py",
        "the tensors as they are stored, before transformers casts them",
    ),
    PrivateName(
        "transformers.modeling_utils:load_state_dict",
        "..., checkpoint_file, map_location",
        "vllm_mha2mla/hf/loading.py",
        "their dtypes in files of torch.save",
    ),
    PrivateName(
        "transformers.conversion_mapping:register_checkpoint_conversion_mapping",
        "model_type_or_class_name, mapping, overwrite",
        "vllm_mha2mla/hf/registration.py",
        "experts are joined while a converted checkpoint is loaded",
    ),
)

_EXACT = "vllm_mha2mla/hf/exact.py"

TORCH_NAMES = (
    PrivateName(f"{_MODULE}._apply", "self, fn, recurse", _EXACT, "casts pass constants by"),
    PrivateName(f"{_MODULE}._buffers", "", _EXACT, "the constants"),
    PrivateName(
        f"{_MODULE}._save_to_state_dict",
        "self, destination, prefix, keep_vars",
        _EXACT,
        "rounded constants are not saved",
    ),
    PrivateName(
        f"{_MODULE}._load_from_state_dict",
        "self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, "
        "error_msgs",
        f"{_EXACT}, {_ATTENTION}",
        "rounded constants and adapters of the original are not loaded",
    ),
    PrivateName(
        f"{_MODULE}._forward_hooks",
        "",
        "vllm_mha2mla/hf/effective_weight.py",
        "a layer whose weight is not all that it multiplies by",
    ),
    PrivateName(
        f"{_MODULE}._forward_pre_hooks", "", "vllm_mha2mla/hf/effective_weight.py", "the same"
    ),
    PrivateName(
        "torch.optim.lr_scheduler:LRScheduler._last_lr",
        "",
        _TRAINER,
        "the rate that Trainer logs, after a run was resumed with another",
    ),
)

VLLM_NAMES = (
    PrivateName("vllm.v1.worker.cpu_worker:CPUWorker", "...", _WORKER, "seeds of requests on CPUs"),
    PrivateName(
        "vllm.v1.worker.gpu_worker:Worker.sample_tokens",
        "self, grammar_output",
        _WORKER,
        "the same",
    ),
    PrivateName(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.discard_request_mask",
        "",
        _WORKER,
        "the requests whose token is dropped",
    ),
    PrivateName(
        "vllm.v1.worker.gpu_input_batch:InputBatch.generators",
        "",
        _WORKER,
        "their generators, by their place in the batch",
    ),
    PrivateName(
        "vllm.config.compilation:CompilationConfig._attention_ops",
        "",
        "vllm_mha2mla/engine_config.py",
        "vLLM splits the compiled model at these",
    ),
    PrivateName(
        "vllm.model_executor.models.config:MODELS_CONFIG_MAP",
        "",
        "vllm_mha2mla/engine_config.py, vllm_mha2mla/refusal.py",
        "checks of our architectures before anything is loaded",
    ),
    PrivateName(
        "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_config",
        "vllm_config",
        "vllm_mha2mla/engine_config.py, vllm_mha2mla/refusal.py",
        "the same",
    ),
    PrivateName(
        "vllm.transformers_utils.model_arch_config_convertor:MODEL_ARCH_CONFIG_CONVERTORS",
        "",
        "vllm_mha2mla/attention/native_config.py",
        "vLLM's own MLA layer, where it is asked for",
    ),
    PrivateName(
        "vllm.transformers_utils.model_arch_config_convertor:"
        "ModelArchConfigConvertorBase.is_deepseek_mla",
        "self",
        "vllm_mha2mla/attention/native_config.py",
        "the same",
    ),
    PrivateName(
        "vllm.model_executor.layers.attention.mla_attention:MLAAttention",
        "..., num_heads, scale, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, q_lora_rank, "
        "kv_lora_rank, kv_b_proj, cache_config, quant_config, prefix",
        "vllm_mha2mla/attention/native.py",
        "the same",
    ),
    PrivateName(
        "vllm.model_executor.layers.attention.mla_attention:MLAAttention.forward",
        "..., q, kv_c_normed, k_pe, output_shape",
        "vllm_mha2mla/attention/native.py",
        "the same",
    ),
    PrivateName(
        "vllm.model_executor.models.llama:LlamaForCausalLM._init_model",
        "self, vllm_config, prefix, layer_type",
        _LLAMA,
        "Llama with our decoder",
    ),
    PrivateName(
        "vllm.model_executor.models.llama:LlamaDecoderLayer.__init__",
        "self, vllm_config, prefix, config, attn_layer_type",
        _LLAMA,
        "Llama's layer with our attention",
    ),
    PrivateName(
        "vllm.model_executor.models.utils:WeightsMapper",
        "..., orig_to_new_stacked",
        _LLAMA,
        "gate and up are one matrix in the engine",
    ),
    PrivateName(
        "vllm.model_executor.models.transformers.base:Base.recursive_replace",
        "self",
        _FAMILIES,
        "attention is exchanged before the backend exchanges the rest",
    ),
    PrivateName(
        "vllm.model_executor.models.transformers.base:Base._create_attention_instances",
        "self, prefix | self",
        _FAMILIES,
        "our attention in place of the backend's",
    ),
    PrivateName(
        "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase.get_attn_backend",
        "self",
        _LAYER,
        "the engine asks every layer for its backend",
    ),
    PrivateName(
        "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase.get_kv_cache_spec",
        "self, vllm_config",
        _LAYER,
        "the engine asks every layer for its cache",
    ),
    PrivateName(
        "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase.bind_kv_cache",
        "self, kv_cache",
        _LAYER,
        "the engine gives every layer its cache",
    ),
    PrivateName(
        "vllm.v1.kv_cache_interface:AttentionSpec",
        "..., num_kv_heads, head_size, dtype",
        _LAYER,
        "the bytes of a cache row",
    ),
    PrivateName(
        "vllm.v1.kv_cache_interface:MLAAttentionSpec",
        "..., cache_dtype_str",
        _LAYER,
        "the same",
    ),
    PrivateName(
        "vllm.forward_context:ForwardContext",
        "..., attn_metadata, no_compile_layers",
        _LAYER,
        "a step's batch, and the layer by its name",
    ),
    PrivateName(
        "vllm.utils.torch_utils:direct_register_custom_op",
        "..., op_name, op_func, mutates_args, fake_impl",
        _LAYER,
        "attention that torch.compile does not look into",
    ),
    PrivateName(
        "vllm.utils.torch_utils:kv_cache_dtype_str_to_dtype",
        "..., kv_cache_dtype, model_config",
        f"{_LAYER}, vllm_mha2mla/cpu_cache.py, vllm_mha2mla/engine_config.py",
        "the cache's dtype",
    ),
    PrivateName(
        "vllm.v1.attention.backend:AttentionMetadataBuilder.__init__",
        "self, kv_cache_spec, layer_names, vllm_config, device",
        _BACKEND,
        "the batch of a step",
    ),
    PrivateName(
        "vllm.v1.attention.backend:AttentionMetadataBuilder.build",
        "self, common_prefix_len, common_attn_metadata, fast_build",
        _BACKEND,
        "the same",
    ),
    PrivateName(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        "..., query_start_loc, query_start_loc_cpu, seq_lens, num_reqs, num_actual_tokens, "
        "max_query_len, max_seq_len, block_table_tensor, slot_mapping, seq_lens_cpu_upper_bound",
        f"{_BACKEND}, {_CUDA}",
        "the same",
    ),
    PrivateName(
        "vllm.v1.attention.backend:AttentionBackend.get_supported_kernel_block_sizes",
        "kv_cache_spec |",
        _BACKEND,
        "block sizes that a user may choose",
    ),
    PrivateName(
        "vllm.v1.attention.backend:AttentionBackend.get_preferred_block_size",
        "cls, default_block_size",
        _CUDA,
        "the block size where none was chosen",
    ),
    PrivateName(
        "vllm.v1.attention.backend:AttentionMetadataBuilder._init_reorder_batch_threshold",
        "..., reorder_batch_threshold, supports_spec_as_decode",
        _CUDA,
        "decodes stand before prefills in a batch",
    ),
    PrivateName(
        "vllm.v1.attention.backend:AttentionMetadataBuilder._cudagraph_support",
        "",
        _CUDA,
        "batches of decodes are captured in whole CUDA graphs",
    ),
    PrivateName(
        "vllm.v1.attention.backends.utils:split_decodes_and_prefills",
        "..., common_attn_metadata, decode_threshold",
        _CUDA,
        "where the prefills begin",
    ),
    PrivateName(
        "vllm.v1.attention.backends.fa_utils:get_scheduler_metadata", "", _FLASH, "FlashAttention"
    ),
    PrivateName(
        "vllm.v1.attention.backends.fa_utils:flash_attn_varlen_func", "", _FLASH, "FlashAttention"
    ),
    PrivateName(
        "vllm.v1.attention.backends.fa_utils:get_flash_attn_version", "...", _FLASH, "its version"
    ),
    PrivateName(
        "vllm.v1.attention.backends.fa_utils:flash_attn_supports_mla", "", _FLASH, "its widths"
    ),
    PrivateName(
        "vllm.v1.worker.workspace:WorkspaceManager.get_simultaneous",
        "self, *shapes_and_dtypes",
        "vllm_mha2mla/kernels/cuda/workspace.py",
        "memory for intermediate results that vLLM's profiling counts",
    ),
    PrivateName(
        "vllm.config.kernel:KernelConfig.linear_backend",
        "",
        "vllm_mha2mla/attention/joined.py",
        "another way of multiplying was asked for",
    ),
    PrivateName(
        "vllm.envs:VLLM_BATCH_INVARIANT",
        "",
        "vllm_mha2mla/attention/joined.py",
        "the same",
    ),
    PrivateName(
        "vllm.model_executor.offloader.base:get_offloader",
        "",
        "vllm_mha2mla/attention/joined.py",
        "weights that are moved may not be joined",
    ),
    PrivateName(
        "vllm.lora.worker_manager:WorkerLoRAManager._load_adapter",
        "self, lora_request",
        "vllm_mha2mla/models/adapters.py",
        "adapters are checked before the engine loads them",
    ),
    PrivateName(
        "vllm.lora.worker_manager:WorkerLoRAManager._adapter_manager",
        "",
        "vllm_mha2mla/models/adapters.py",
        "the model that an adapter is for",
    ),
    PrivateName(
        "vllm.lora.utils:get_adapter_absolute_path",
        "lora_path",
        "vllm_mha2mla/models/adapters.py",
        "the adapter's files",
    ),
    PrivateName(
        "vllm.model_executor.layers.attention.kv_transfer_utils:maybe_transfer_kv_layer",
        "func",
        _LAYER,
        "KV connectors wait for a layer's cache and take it",
    ),
    PrivateName(
        "vllm.transformers_utils.config:get_config",
        "..., model, trust_remote_code, revision",
        "vllm_mha2mla/overrides.py",
        "a checkpoint's config without overrides",
    ),
    PrivateName(
        "vllm.utils.cpu_resource_utils:get_memory_node_info",
        "node_id",
        "vllm_mha2mla/cpu_cache.py",
        "free memory of a NUMA node",
    ),
    PrivateName(
        "vllm.utils.cpu_resource_utils:get_visible_memory_node",
        "",
        "vllm_mha2mla/cpu_cache.py",
        "the nodes that this process may use",
    ),
)

PRIVATE_NAMES = TRANSFORMERS_NAMES + TORCH_NAMES + VLLM_NAMES
