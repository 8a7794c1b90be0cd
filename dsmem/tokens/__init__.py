"""Token files: text to a headerless `.bin` of token ids that nanoGPT and Megatron-LM read as it is, and back to windows."""
