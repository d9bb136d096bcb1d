//! Tokenizer and prompts.
