"""Hugging Face's classes of tokenizers: which of them reads a folder, and the roles that it begins with."""

from kerasllm.text import tokenizer_parts

# Class -> the roles that its tokens have where no file says otherwise.
ROLES = {
    "AlbertTokenizer": tokenizer_parts.ALBERT_TOKENS,
    "BarthezTokenizer": tokenizer_parts.ROBERTA_TOKENS,
    "BertTokenizer": tokenizer_parts.BERT_TOKENS,
    "BigBirdTokenizer": tokenizer_parts.ROBERTA_TOKENS | {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "BlenderbotTokenizer": tokenizer_parts.ROBERTA_TOKENS,
    "CamembertTokenizer": tokenizer_parts.ROBERTA_TOKENS,
    "CodeGenTokenizer": tokenizer_parts.GPT2_TOKENS | {"unk": "<|endoftext|>"},
    "CodeLlamaTokenizer": tokenizer_parts.LLAMA_TOKENS,
    "CohereTokenizer": {
        **{"pad": "<PAD>", "unk": "<UNK>", "bos": "<BOS_TOKEN>", "eos": "<|END_OF_TURN_TOKEN|>"},
        **{"cls": "<CLS>", "sep": "<SEP>", "mask": "<MASK_TOKEN>"},
    },
    "DebertaTokenizer": tokenizer_parts.DEBERTA_TOKENS,
    "DebertaV2Tokenizer": tokenizer_parts.DEBERTA_TOKENS,
    "DistilBertTokenizer": tokenizer_parts.BERT_TOKENS,
    "GPT2Tokenizer": tokenizer_parts.GPT2_TOKENS | {"unk": "<|endoftext|>"},
    "GPTNeoXTokenizer": tokenizer_parts.GPT2_TOKENS | {"unk": "<|endoftext|>", "pad": "<|padding|>"},
    "GemmaTokenizer": tokenizer_parts.GEMMA_TOKENS,
    "LlamaTokenizer": tokenizer_parts.LLAMA_TOKENS,
    "MBart50Tokenizer": {role: token for role, token in tokenizer_parts.ROBERTA_TOKENS.items() if role != "bos"},
    "MBartTokenizer": tokenizer_parts.ROBERTA_TOKENS,
    "MPNetTokenizer": tokenizer_parts.ROBERTA_TOKENS | {"unk": "[UNK]"},
    "MarianTokenizer": tokenizer_parts.T5_TOKENS,
    "NllbTokenizer": tokenizer_parts.ROBERTA_TOKENS,
    "PegasusTokenizer": tokenizer_parts.T5_TOKENS | {"mask": "<mask_2>"},
    "Qwen2Tokenizer": tokenizer_parts.QWEN2_TOKENS,
    "RobertaTokenizer": tokenizer_parts.ROBERTA_TOKENS,
    "T5Tokenizer": tokenizer_parts.T5_TOKENS,
    "XGLMTokenizer": {role: token for role, token in tokenizer_parts.ROBERTA_TOKENS.items() if role != "mask"},
    "XLMRobertaTokenizer": tokenizer_parts.ROBERTA_TOKENS,
    "XLNetTokenizer": tokenizer_parts.ROBERTA_TOKENS | {"cls": "<cls>", "sep": "<sep>"},
}
# Classes that are another one under a name of their own.
SAME = {
    **dict.fromkeys("ConvBert Electra LayoutLM MobileBert RetriBert SqueezeBert".split(), "BertTokenizer"),
    **dict.fromkeys("Bart LED Longformer Mvp".split(), "RobertaTokenizer"),
    "MT5": "T5Tokenizer",
}
# Class -> the types of models whose tokenizer it is, where tokenizer_config.json names none.
_MODEL_TYPES = {
    "AlbertTokenizer": "albert yoso",
    "BarthezTokenizer": "barthez",
    "BertTokenizer": "bert convbert electra ernie layoutlm megatron-bert mobilebert nezha nomic_bert qdqbert realm "
    "retribert squeezebert visual_bert",
    "BigBirdTokenizer": "big_bird",
    "BlenderbotTokenizer": "blenderbot",
    "CamembertTokenizer": "camembert",
    "CodeLlamaTokenizer": "code_llama",
    "CohereTokenizer": "cohere cohere2",
    "DebertaTokenizer": "deberta",
    "DebertaV2Tokenizer": "deberta-v2",
    "DistilBertTokenizer": "distilbert",
    "GPT2Tokenizer": "codegen dbrx gpt2 gpt_neo gptj jais2 opt phi starcoder2",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma t5gemma",
    "LlamaTokenizer": "llama",
    "MBart50Tokenizer": "mbart50",
    "MBartTokenizer": "mbart",
    "MPNetTokenizer": "mpnet",
    "MarianTokenizer": "marian",
    "NllbTokenizer": "nllb nllb-moe",
    "PegasusTokenizer": "pegasus",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
    "RobertaTokenizer": "bart data2vec-text ibert led lilt longformer mega mra mvp roberta roberta-prelayernorm",
    "T5Tokenizer": "mt5 switch_transformers t5",
    "XGLMTokenizer": "xglm",
    "XLMRobertaTokenizer": "gte jina_embeddings_v3 xlm-roberta xmod",
    "XLNetTokenizer": "xlnet",
}
OF_MODEL = {model_type: name for name, types in _MODEL_TYPES.items() for model_type in types.split()}
# Models of which transformers reads tokenizer.json as it stands, whichever class their files name.
AS_IT_STANDS = frozenset(
    "bigbird_pegasus ernie4_5 ernie4_5_moe flex_olmo glm glm4 glm4_moe gpt_bigcode granite granitemoe granitemoehybrid "
    "granitemoeshared internlm2 internlm3 jamba minicpm3 ministral ministral3 mistral mistral3 mixtral "
    "modernbert modernbert-decoder nemotron nystromformer olmo2 olmo3 pegasus_x persimmon phi3 phimoe stablelm umt5 "
    "xlm-roberta-xl".split()
)
# ... and of which the older files are another family's.
OF_OLDER_FILES = dict.fromkeys(("mistral", "mixtral"), "LlamaTokenizer")
# What any family's files may call themselves.
ANY = ("PreTrainedTokenizer", "TokenizersBackend")


def canonical(name):
    """The name of a class without "Fast", or of the class that it is under another name."""
    name = name.removesuffix("Fast")
    return SAME.get(name.removesuffix("Tokenizer"), name)


def of_json(config, model):
    """The class whose rules change what a tokenizer.json says, or None: it is read as it stands.

    Args:
        config, model: what tokenizer_config.json and config.json hold.
    """
    model_type, named = model_type_in(model), named_in(config, model)
    if named is not None and (canonical(named) in ANY or canonical(named) not in ROLES or model_type in AS_IT_STANDS):
        return None
    if model_type == "qwen2":  # Its files name all kinds of classes, wrongly.
        return "Qwen2Tokenizer"
    if named is not None:
        return canonical(named)
    # transformers knows of no roles for Llama, and so of no rules.
    return None if model_type == "llama" else OF_MODEL.get(model_type)


def named_in(config, model):
    """The class that the files name, or None."""
    names = (config.get("tokenizer_class"), model.get("tokenizer_class"))
    return next((name for name in names if isinstance(name, str)), None)


def model_type_in(model):
    """The type of model that config.json names, or None."""
    model_type = model.get("model_type")
    return model_type if isinstance(model_type, str) else None
