"""Frozen Llama-type blocks computed faster on a CPU: one autograd node a block, with a hand-written backward pass.

What it is: when nothing of the LLM is trained, only the gradient of its input embeddings is wanted. Each block of the
stock model then runs as one node that keeps no gradients of weights, joins queries, keys and values into one product,
computes padded positions once and takes attention of short sequences as plain products (`nodes`, `weights`).

When it acts: with `llm.fast=true` (the default) and `llm.train=none`, on the CPU, in fp32 or bf16, for families
whose record says `accelerated` (`ima.models.llm.families`), after `self_check` has compared a block with its stock
twin. A call that needs more runs the stock forward: a KV cache, attention weights, a hook that changes values, a hook
that looks while gradients are wanted, long sequences (`blocks.MAX_SCORE_BYTES`). On a GPU nothing of it acts.

What it gains: `python -m ima bench fast` gives the ratio accelerated / stock of a forward and backward pass for each
dtype and shape, `python -m ima bench train` that of a whole step. No ratio has been published yet. Published is what
copies of weights in the machine's own layout gain (commit 7217b42): without them products take 13 to 19 % longer in
fp32 and 5 to 8 % in bf16, where the copies of SmolLM2 take 424 MB, so that bf16 weights are used in place.
"""
