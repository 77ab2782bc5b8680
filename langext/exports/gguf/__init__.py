"""GGUF files for llama.cpp and Ollama."""
