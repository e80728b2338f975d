"""VideoReward: a vision-language model with a linear head that scores a clip on each dimension (VideoAlign, 3.2)."""
