"""
llama.cpp: the model, the KV cache of a sequence, and sampling.

This is the only folder that calls llama.cpp for text. It knows tokens, embeddings and cells;
it knows nothing of chat templates, families or pictures.
"""
