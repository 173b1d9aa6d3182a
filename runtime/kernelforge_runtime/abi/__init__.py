"""The contract between toolkit and runtime: plain data, no Vulkan, no file access."""
