"""Chat with SmolLM2, a Llama of 135 million weights in 4 bits, opened from llama.cpp's file.

python examples/chat_smollm.py
"""

import time

import kerasllm

QUESTIONS = ["What is the capital of France?", "And how many people live there?"]
MAX_NEW_TOKENS = 60


def main(tiny=False):
    """Ask some questions, one chat; with `tiny` for a few tokens, for the tests.

    Returns:
        The messages of the chat.
    """
    start = time.time()
    model = kerasllm.GPT.from_preset(kerasllm.pretrained.smollm2())
    print(f"{model.count_params() / 1e6:.0f} million weights, opened in {time.time() - start:.1f} s")

    messages = [{"role": "system", "content": "You answer in one short sentence."}]
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        print(f"\n> {question}")
        # Answers are greedy, and stream as they are made.
        answer = ""
        for piece in model.stream(messages, max_new_tokens=4 if tiny else MAX_NEW_TOKENS, temperature=0):
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})
    return messages


if __name__ == "__main__":
    main()
