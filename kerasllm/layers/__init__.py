"""The layers the models are made of.

Shapes are written with these letters, here and everywhere in kerasllm:

    B  batch
    T  query length: the positions of the sequence a layer computes
    S  key length: the positions it looks at
    D  hidden width of the model
    N  heads
    G  key heads, a divisor of N: each serves N / G query heads
    H  width of a head
    F  inner width of the feed-forward
    V  vocabulary
    L  generated length
    K  beams

So projections are (B, T, N, H), caches (B, N, S, H), attention scores (B, N, T, S). Masks are boolean, True
is "a real token" in `padding_mask` (B, T) and "may look" in `attention_mask`, broadcast to (B, N, T, S).
"""

from kerasllm import lazy

__getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
