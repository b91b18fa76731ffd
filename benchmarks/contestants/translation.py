"""Translators by the recipe of examples/translate_files.py, and the same in plain PyTorch, on the same batches.

30,000 sentences of Tatoeba, English to Spanish. BLEU is that of greedy translations of 1,000 others at the end.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import translate_files

STEPS = 1000
FIGURES = ("BLEU",)


def read(path):
    """Nothing: the recipe has its own corpus."""


def recipe(kind, steps):
    """The options, tokenizers, test pairs, dataset and schedule; the epochs are as many as the steps take."""
    options = translate_files.read_options(["--model", kind, "--epochs", "1"])
    train, _, test = translate_files.read_corpus(options)
    tokenizers = translate_files.make_tokenizers(train, options)
    dataset = translate_files.make_dataset(train, *tokenizers, options)
    return options, tokenizers, test, dataset, translate_files.make_schedule(options, steps)


def bleu(translations, test):
    """BLEU of translations of the test pairs."""
    import kerasllm

    return kerasllm.metrics.bleu(translations, [reference for _, reference in test])[0]


def ours(kind, text, steps):
    """Ours: (BLEU, weights, seconds of training)."""
    import keras

    keras.utils.set_random_seed(0)
    options, tokenizers, test, dataset, schedule = recipe(kind, steps)
    model = translate_files.make_model(options, *tokenizers)
    translate_files.compile_model(model, schedule)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) >= steps:
                self.model.stop_training = True

    start = time.perf_counter()
    model.fit(dataset, epochs=-(-steps // len(dataset)), verbose=0, callbacks=[Stop()])
    seconds = time.perf_counter() - start
    translations = model.translate([source for source, _ in test], max_length=options.max_length, batch_size=100)
    return bleu(translations, test), model.count_params(), seconds


def plain_torch(kind, text, steps):
    """The same in plain PyTorch: (BLEU, weights, seconds of training)."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    options, (source_tokenizer, target_tokenizer), test, dataset, schedule = recipe(kind, steps)
    sizes = translate_files.SIZES[kind][options.preset]
    make = transformer if kind == "transformer" else lstm
    model = make(source_tokenizer.vocabulary_size, options, **sizes)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1.0, betas=(0.9, 0.98))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(schedule(step)))
    loss_of = nn.CrossEntropyLoss(ignore_index=-1, label_smoothing=0.1)

    def tensors(inputs):
        return [
            torch.from_numpy(inputs[f"{side}_{name}"])
            for side in ("source", "target")
            for name in ("token_ids", "padding_mask")
        ]

    start, step = time.perf_counter(), 0
    while step < steps:
        dataset.epoch += 1
        for index in range(min(len(dataset), steps - step)):
            inputs, labels = dataset[index]
            loss = loss_of(model(*tensors(inputs)).flatten(0, 1), torch.from_numpy(labels).long().flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            step += 1
    seconds = time.perf_counter() - start

    model.eval()
    rows = source_tokenizer.encode_batch([source for source, _ in test])
    order = np.argsort([len(row) for row in rows], kind="stable")
    translations = {}
    with torch.no_grad():
        for places in np.split(order, range(100, len(order), 100)):
            ids = greedy(model, [rows[i] for i in places], target_tokenizer, options.max_length)
            translations |= zip(places, map(target_tokenizer.decode, ids), strict=True)
    return bleu([translations[i] for i in range(len(test))], test), sum(p.numel() for p in model.parameters()), seconds


def greedy(model, rows, tokenizer, length):
    """The likeliest token after another, the whole target read anew each time: lists of ids up to the end token."""
    import torch

    from kerasllm.text import batches

    source, source_mask = map(torch.from_numpy, batches.pad(rows))
    target = torch.full((len(rows), 1), tokenizer.bos_id)
    for _ in range(length - 1):
        logits = model(source, source_mask, target, torch.ones_like(target, dtype=torch.bool))
        target = torch.cat([target, logits[:, -1:].argmax(-1)], 1)
        if (target == tokenizer.eos_id).any(1).all():
            break
    ends = [[*row, tokenizer.eos_id].index(tokenizer.eos_id) for row in target.tolist()]
    return [row[1:end] for row, end in zip(target.tolist(), ends, strict=True)]


def transformer(count, options, num_layers, num_heads, hidden_dim, intermediate_dim):
    """The Transformer of PyTorch's own layers."""
    import torch
    from torch import nn

    sizes = {"dim_feedforward": intermediate_dim, "dropout": options.dropout, "batch_first": True, "norm_first": True}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.dropout = nn.Embedding(count, hidden_dim), nn.Dropout(options.dropout)
            angles = torch.arange(options.max_length)[:, None] / 10000 ** (torch.arange(0, hidden_dim, 2) / hidden_dim)
            self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
            layer = nn.TransformerEncoderLayer(hidden_dim, num_heads, **sizes)
            norm = nn.LayerNorm(hidden_dim)
            self.encoder = nn.TransformerEncoder(layer, num_layers, norm, enable_nested_tensor=False)
            layer = nn.TransformerDecoderLayer(hidden_dim, num_heads, **sizes)
            self.decoder = nn.TransformerDecoder(layer, num_layers, nn.LayerNorm(hidden_dim))
            for weight in self.parameters():
                if weight.ndim == 2:
                    nn.init.xavier_uniform_(weight)
            nn.init.normal_(self.tokens.weight, std=hidden_dim**-0.5)

        def embed(self, token_ids):
            x = self.tokens(token_ids) * math.sqrt(hidden_dim) + self.positions[: token_ids.shape[1]]
            return self.dropout(x)

        def forward(self, source, source_mask, target, target_mask):
            length = target.shape[1]
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            memory = self.encoder(self.embed(source), src_key_padding_mask=~source_mask)
            masks = {"tgt_key_padding_mask": ~target_mask, "memory_key_padding_mask": ~source_mask}
            x = self.decoder(self.embed(target), memory, tgt_mask=hidden, tgt_is_causal=True, **masks)
            return x @ self.tokens.weight.T

    return Model()


def lstm(count, options, num_layers, hidden_dim):
    """The LSTM of PyTorch's own layers: attention after the decoder's last layer, as Luong et al. 2015 have it."""
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    rates = {"dropout": options.dropout if num_layers > 1 else 0.0, "batch_first": True}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.dropout = nn.Embedding(count, hidden_dim), nn.Dropout(options.dropout)
            self.encoder = nn.LSTM(hidden_dim, hidden_dim, num_layers, bidirectional=True, **rates)
            self.decoder = nn.LSTM(hidden_dim, hidden_dim, num_layers, **rates)
            self.bridge = nn.ModuleList([nn.Linear(2 * hidden_dim, hidden_dim) for _ in range(2 * num_layers)])
            self.query = nn.Linear(hidden_dim, hidden_dim, bias=False)
            self.key = nn.Linear(2 * hidden_dim, hidden_dim, bias=False)
            self.energy = nn.Linear(hidden_dim, 1, bias=False)
            self.combine = nn.Linear(3 * hidden_dim, hidden_dim, bias=False)
            self.bias = nn.Parameter(torch.zeros(count))
            nn.init.normal_(self.tokens.weight, std=hidden_dim**-0.5)

        def forward(self, source, source_mask, target, target_mask):
            x = self.dropout(self.tokens(source))
            packed = pack_padded_sequence(x, source_mask.sum(1), batch_first=True, enforce_sorted=False)
            packed, last = self.encoder(packed)
            memory = pad_packed_sequence(packed, batch_first=True, total_length=source.shape[1])[0]
            last = [torch.cat([s[2 * i], s[2 * i + 1]], -1) for s in last for i in range(num_layers)]
            states = [layer(s) for layer, s in zip(self.bridge, last, strict=True)]
            states = torch.stack(states[:num_layers]).tanh(), torch.stack(states[num_layers:])
            x = self.decoder(self.dropout(self.tokens(target)), states)[0]
            sums = torch.tanh(self.query(x)[:, :, None] + self.key(memory)[:, None])
            scores = self.energy(sums)[..., 0].masked_fill(~source_mask[:, None], -math.inf)
            x = torch.tanh(self.combine(torch.cat([scores.softmax(-1) @ memory, x], -1)))
            return self.dropout(x) @ self.tokens.weight.T + self.bias

    return Model()
