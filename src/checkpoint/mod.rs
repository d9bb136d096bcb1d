//! Checkpoints: config.json as structs, mapped safetensors, the Hugging Face cache, synthetic weights.
