# The public names of kerasllm.distribution, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm.distribution import rules as rules
from kerasllm.distribution.setting import distribute as distribute
from kerasllm.distribution.summary import sharding_summary as sharding_summary
