# The public names of kerasllm.evaluation, which are imported when they are first used (kerasllm/lazy.py).
from kerasllm.evaluation import cross_validation as cross_validation
from kerasllm.evaluation import judging as judging
from kerasllm.evaluation import report as report
from kerasllm.evaluation import rows as rows
from kerasllm.evaluation.cross_validation import CrossValidation as CrossValidation
from kerasllm.evaluation.cross_validation import cross_validate as cross_validate
from kerasllm.evaluation.judging import evaluate as evaluate
from kerasllm.evaluation.report import Measure as Measure
from kerasllm.evaluation.report import Report as Report
