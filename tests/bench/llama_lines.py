"""The lines of llama_cpp.py by section, and what each has to reach; numbers of a shape begin with its name."""

_OF_A_SHAPE = {
    "steps": {"decode_over_llama_cpp": (">=", 1), "prefill_512_over_llama_cpp": (">=", 2),
              "prefill_2048_over_llama_cpp": (">=", 2)},
    "few_bits": {"int8_decode_over_bf16": (">=", 1.5), "int8_decode_over_llama_cpp": (">=", 1),
                 "int4_decode_over_bf16": (">=", 2.2), "int4_decode_over_llama_cpp": (">=", 1)},
    "users": {"16_users_tokens_over_llama_cpp": (">=", 2), "16_users_p99_between_tokens_over_llama_cpp": ("<=", 0.5),
              "16_users_drawn_tokens_over_llama_cpp": (">=", 2),
              "16_users_drawn_p99_between_tokens_over_llama_cpp": ("<=", 0.5)},
    "contexts": {"32_users_8k_recipe_over_bf16": (">=", 6), "32_users_8k_tokens_over_llama_cpp": (">=", 4)},
    "long": {"32k_decode_over_llama_cpp": (">=", 2.5)},
}
_OF_MODELS_OF_THEIR_OWN = {"k_quants": {"q4_k_m_decode_over_llama_cpp": (">=", 1)},
                           "quality": {"demo_kl_lowkey_4x_over_llama_cpp_q4_0": ("<=", 1)}}
SECTIONS = (*_OF_A_SHAPE, *_OF_MODELS_OF_THEIR_OWN)


def lines(section, shape):
    """{name: (comparison, target)}"""
    found = {f"{shape}_{what}": line for what, line in _OF_A_SHAPE.get(section, {}).items()}
    return found | _OF_MODELS_OF_THEIR_OWN.get(section, {})


def sections_of(shape):
    """Of other shapes the steps alone: what servers do with them takes hours on two cores."""
    return SECTIONS if shape == "135M" else ("steps",)
