"""Renders the template samples with transformers' own Jinja environment."""
import warnings

from transformers.utils.chat_template_utils import _compile_jinja_template

from template_samples import CONVERSATIONS, SNIPPETS, TEMPLATES


def messages_of(conversation):
    return [{"role": role, "content": content} for role, content in conversation]


def render(source, conversation, add_generation_prompt):
    """The text, or null where the template refuses or fails."""
    try:
        return _compile_jinja_template(source).render(
            messages=messages_of(conversation), tools=None, documents=None,
            add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>")
    except Exception:  # whatever Jinja or Python raises: our side must fail too
        return None


def render_all():
    warnings.simplefilter("ignore")
    families = {}
    for name, source in TEMPLATES.items():
        families[name] = {
            "source": source,
            "texts": [[render(source, c, add) for add in (False, True)] for c in CONVERSATIONS],
        }
    return {
        "conversations": CONVERSATIONS,
        "families": families,
        "snippets": [[source, render(source, CONVERSATIONS[3], True)] for source in SNIPPETS],
    }
