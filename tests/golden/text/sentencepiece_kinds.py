"""Small SentencePiece models as the families have them, trained here, and what the package `sentencepiece` makes of the
strings. Texts that hold the text of a control piece are left out (null): in those we find the piece, as transformers
does, and the package does not."""
import io
import random

import sentencepiece

from many_strings import checksums, many_strings
from text_samples import SENTENCES

CONTROLS = ["<s>", "</s>", "<unk>", "<bos>", "<eos>", "<pad>"]
KINDS = {
    # Llama 2, Mistral, Phi-3
    "spm_llama": {"byte_fallback": True, "add_dummy_prefix": True, "remove_extra_whitespaces": False},
    # Gemma
    "spm_gemma": {"byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False,
                  "user_defined_symbols": ["\n", "\n\n", "▁▁", "▁▁▁", "<start_of_turn>"], "bos_piece": "<bos>",
                  "eos_piece": "<eos>", "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    # Without bytes for what is unknown.
    "spm_plain": {"byte_fallback": False, "add_dummy_prefix": True, "remove_extra_whitespaces": True},
}


def train_all(folder, texts):
    for kind, options in KINDS.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 3), model_writer=model, model_type="bpe", vocab_size=800,
            normalization_rule_name="identity", character_coverage=0.995, minloglevel=2, num_threads=1, **options)
        path = folder / kind / "tokenizer.model"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

        def encode(text):
            return None if any(control in text for control in CONTROLS) else processor.encode(text)

        ids = [encode(text) for text in texts]
        noise_ids = random.Random(17)
        # Where bytes make no character transformers gives up all of a run of them, the package single ones.
        odd = (processor.is_unknown, processor.is_control, processor.is_byte)
        known = [i for i in range(len(processor)) if not any(is_odd(i) for is_odd in odd)]
        noise = [[noise_ids.choice(known) for _ in range(12)] for _ in range(60)]
        yield kind, {
            "ids": ids,
            "decoded": [None if i is None or processor.unk_id() in i else processor.decode(i) for i in ids],
            "noise": [[n, processor.decode(n)] for n in noise],
            "many": checksums([encode(text) or [] for text in many_strings()]),
        }
