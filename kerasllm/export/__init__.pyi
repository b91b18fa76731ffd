# The public names of kerasllm.export, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm.export import core as core
from kerasllm.export import litert as litert
from kerasllm.export import runtime as runtime
from kerasllm.export.core import export_model as export_model
from kerasllm.export.litert import dense_recurrence as dense_recurrence
from kerasllm.export.runtime import Runner as Runner
