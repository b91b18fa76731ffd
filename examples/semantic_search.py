"""Search by meaning: MiniLM finds the sentences that are nearest to a query.

python examples/semantic_search.py
"""

import kerasllm

SENTENCES = [
    "A man is eating a piece of bread.",
    "Two dogs chase each other through the snow.",
    "The stock market fell sharply on Monday.",
    "She plays the violin in an orchestra.",
    "The recipe calls for two cups of flour.",
    "Scientists have found water on a distant planet.",
]
QUERIES = ["animals at play", "someone has a meal", "news from astronomy", "musicians"]


def main(tiny=False):
    """Search; with `tiny` the weights are a toy's, for the tests.

    Returns:
        For each query its hits.
    """
    model = kerasllm.BERTEmbedder.from_preset(kerasllm.pretrained.minilm())

    # Embedded once; `index.save(path)` and `kerasllm.EmbeddingIndex.load(path)` keep it for another day.
    index = model.index(SENTENCES)
    hits = model.search(QUERIES, index, top_k=2)
    for query, found in zip(QUERIES, hits, strict=True):
        print(query)
        for hit in found:
            print(f"    {hit['score']:.2f}  {hit['text']}")
    return hits


if __name__ == "__main__":
    main()
