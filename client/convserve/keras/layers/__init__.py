"""The layers that a server computes, and what they keep of it."""
