"""Let LiteRT-LM continue texts with an exported bundle, greedily: no TensorFlow, no Keras, no kerasllm.

python examples/run_litert_lm.py MODEL.litertlm "The city of" "In 1969 , the band"
"""

import sys

import litert_lm

path, *texts = sys.argv[1:]
with litert_lm.Engine(path, backend=litert_lm.Backend.CPU(), cache_dir=":nocache") as engine:
    for text in texts:
        with engine.create_session(apply_prompt_template=False, max_output_tokens=40) as session:
            session.run_prefill([text])
            print(session.run_decode().texts[0])
