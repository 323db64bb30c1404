"""Renders the template samples with transformers' own Jinja environment."""
import warnings

from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from template_samples import CONTINUED, CONVERSATIONS, OPTIONS, SNIPPETS, TEMPLATES


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


def render_option(name, conversation, variables, continued):
    return render_jinja_template([messages_of(CONTINUED[conversation])], chat_template=TEMPLATES[name],
                                 add_generation_prompt=not continued, continue_final_message=continued, bos_token="<s>",
                                 eos_token="</s>", **variables)[0][0]


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
        "continued": CONTINUED,
        "options": [[*case, render_option(*case)] for case in OPTIONS],
        "snippets": [[source, render(source, CONVERSATIONS[3], True)] for source in SNIPPETS],
    }
