# The public names of kerasllm.generation, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm.generation import config as config
from kerasllm.generation import scoring as scoring
from kerasllm.generation import sequences as sequences
from kerasllm.generation.config import GenerationConfig as GenerationConfig
from kerasllm.generation.scoring import Score as Score
from kerasllm.generation.sequences import Generation as Generation
