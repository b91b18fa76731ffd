"""All families of checkpoints, in the order in which a model is offered to those that write."""

from kerasllm.checkpoints import bart, bert, gemma2, gpt2, gpt_neox, keras_hub, llama, marian, ours, t5

FAMILIES = (
    *bert.FAMILIES,
    gpt2.GPT2,
    gpt_neox.GPT_NEOX,
    *llama.FAMILIES,
    gemma2.GEMMA2,
    marian.MARIAN,
    bart.BART,
    t5.T5,
    ours,
)
READ_ONLY = keras_hub.FAMILIES
