"""Models as Keras writes them into files: what they are made of, where its weights are, and what follows what."""
