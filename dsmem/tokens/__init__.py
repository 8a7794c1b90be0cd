"""Token files: text to a headerless `.bin` that nanoGPT and Megatron-LM read as it is, and from there to windows."""
