"""Arrays as a safetensors file: its header, its layout and read-only views of it. No I/O."""
