"""The targets of tests/quality/run, and docs/quality.md with its plots."""
import math
import os
import re
import subprocess

import plot
import sweeps

OURS = ("lowkey-4x", "lowkey-6x", "lowkey-8x", "lowkey-10x")


# ---- targets ---------------------------------------------------------------------------------------------------

def interpolate(points, x):
    """log y at x on the line through (x, y) points; outside, along the nearest piece."""
    points = sorted(points)
    i = min(max(1, next((i for i, p in enumerate(points) if p[0] >= x), len(points) - 1)), len(points) - 1)
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return math.exp(math.log(y0) + (math.log(y1) - math.log(y0)) * (x - x0) / (x1 - x0))


class Targets:
    def __init__(self):
        self.lines = []

    def add(self, name, measured, limit, comparison="<=", why=""):
        if measured is None:
            result = f"skipped: {why}"
        else:
            result = "pass" if (measured <= limit if comparison == "<=" else measured >= limit) else "fail"
        self.lines.append(dict(name=name, measured="-" if measured is None else f"{measured:.4g}",
                               target=f"{comparison}{limit:g}", result=result))


def targets(args, bench, rows, others):
    t = Targets()
    kl = lambda name: rows[name]["kl"] if name in rows else None
    t.add("exact_kl", kl("exact"), 0)
    first_try = [(bits, k) for _, bits, k in sweeps.FIRST_TRY]
    same_run = [(rows[n]["bits_per_element"], rows[n]["kl"]) for n in rows if rows[n]["family"] == "plain PCA, allocated"]
    worst = lambda chosen, line: max((r["kl"] / interpolate(line, r["bits_per_element"]) for r in chosen), default=None)
    reason = bench.skipped.get("lowkey-4x", "")
    ours = [r for r in rows.values() if r["family"] == "ours" and 1.75 <= r["bits_per_element"] <= 5]
    t.add("ours_kl_over_first_try", worst(ours, first_try), .7, why=reason)
    if same_run:
        t.add("ours_kl_over_plain_pca_here", worst(ours, same_run), .7, why=reason)
    # What is asked of trained bases; those in the tree are calibrated.
    t.add("lowkey_4x_to_8x_kl_over_first_try", worst([rows[n] for n in OURS[:3] if n in rows], first_try), .35, why=reason)
    for name, share in (("lowkey-4x", .98), ("lowkey-6x", .95)):
        t.add(f"{name}_top1", rows[name]["top1"] if name in rows else None, share, ">=", why=bench.skipped.get(name, ""))
    t.add("matryoshka_50_kl", kl("matryoshka-50"), sweeps.PLAIN_PCA_HALF_KL / 2, why=bench.skipped.get("matryoshka-50", ""))
    ranks = [(r["bits_per_element"], r["kl"]) for r in rows.values() if r["family"] == "plain PCA, ranks"]
    nested = [rows[n] for n in ("matryoshka-50", "matryoshka-40", "matryoshka-25") if n in rows]
    if len(ranks) > 1:
        t.add("matryoshka_kl_over_pca", worst(nested, ranks), 1, why=bench.skipped.get("matryoshka-50", ""))
    probe = os.path.join(os.path.dirname(args.binary), "twin_probe")
    recipe = os.path.join(args.out, "recipes", bench.name, "minikv.yaml")
    done = subprocess.run([probe, "bytes", recipe, "32", "32", "128", "4096", "512"], capture_output=True, text=True)
    sizes = [int(n) / 1e9 for n in done.stdout.split()] or [None]
    t.add("minikv_llama2_7b_gigabytes", sizes[-1], .336, why=done.stderr.strip())
    ours = [r for n, r in rows.items() if n in OURS + ("q8",)]
    t.add("ours_encode_share", max((r["encode_share"] for r in ours), default=None), .05)
    t.add("ours_attention_over_exact", max((r["attention_ratio"] for r in ours), default=None), 1)
    pair = [others[n][1]["exact"]["ppl_exact"] for n in ("cla2", "half") if n in others]
    t.add("cla2_ppl_over_half_head_dim", pair[0] / pair[1] if len(pair) == 2 else None, 1, why="twins are absent")
    return t.lines


# ---- docs/quality.md -------------------------------------------------------------------------------------------

def table(rows, mark=frozenset()):
    percent = lambda v: "-" if v is None else f"{100 * v:.1f} %"
    out = ["| recipe | ratio | bits per element | KL, nats | top-1 | perplexity | recall, first | later | attention / exact | encoding / prefill |",
           "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for r in sorted(rows, key=lambda r: (r["ratio"], r["recipe"])):
        name = f"**{r['recipe']}**" if r["recipe"] in mark else r["recipe"]
        out.append(f"| {name} | {r['ratio']:.2f}x | {r['bits_per_element']:.2f} | {r['kl']:.5f} | {percent(r['top1'])} | "
                   f"{100 * (r['ppl'] / r['ppl_exact'] - 1):+.2f} % | {percent(r['recall_first'])} | {percent(r['recall_later'])} | "
                   f"{r['attention_ratio']:.2f} | {percent(r['encode_share'])} |")
    return "\n".join(out) + "\n"


def families(rows):
    found = {}
    for r in rows.values():
        if r["family"] != "shipped":
            found.setdefault(r["family"], []).append((r["ratio"], r["kl"], r["recipe"]))
    order = ["ours", "plain PCA, allocated", "embedded, uniform", "KIVI-like", "MiniKV",
             "MatryoshkaKV", "plain PCA, ranks", "KV-heads"]
    return {f: found[f] for f in sorted(found, key=lambda f: order.index(f) if f in order else 99)}


def papers(rows, others):
    def cell(rows, name):
        r = rows.get(name)
        return f"KL {r['kl']:.4f}, perplexity {100 * (r['ppl'] / r['ppl_exact'] - 1):+.1f} %" if r else "not measured"
    mha = others["mha"][1] if "mha" in others else {}
    out = ["| paper | what it reports | ours |", "|---|---|---|",
           "| MatryoshkaKV (arXiv:2410.14731) | LLaMA2-7B, mean accuracy of six tasks 61.2: trained 59.1 at 50 % of the features, "
           "48.7 at 25 %; plain PCA 43.1 and 32.9 | trained: " + "; ".join(
               f"{n[11:]} %: {cell(rows, n)}" for n in ("matryoshka-50", "matryoshka-25")) + ". plain PCA: " + "; ".join(
               f"{p} %: {cell(rows, f'pca-keep-0.{p}')}" for p in (50, 25)) + " |",
           "| KV-heads (arXiv:2406.07056) | LLaMA2-7B, half or a quarter of the KV heads at \"comparable\" accuracy after LoRA | "
           f"without the LoRA step, MHA twin: 2 into 1 {cell(mha, 'kv-heads-2')}; 4 into 1 {cell(mha, 'kv-heads-4')}; the demo "
           f"model's two KV heads into one: {cell(rows, 'kv-heads-2')} |",
           "| MiniKV (arXiv:2411.18077) | LLaMA2-7B-chat, LongBench 35.19: 33.71, pyramid 34.65; 0.33 GB for 4096 + 512 tokens "
           f"against 2.42 GB | {cell(rows, 'minikv')}; pyramid {cell(rows, 'minikv-pyramid')}; that shape: 0.3355 GB, and 0.017 GB of buffer for the page after it |"]
    ppl = {n: others[n][1]["exact"]["ppl_exact"] for n in ("mha", "cla2", "half") if n in others}
    pair = (f"CLA2 {ppl['cla2']:.2f}, half head_dim {ppl['half']:.2f}: " + (
        "the paper's sign" if ppl["cla2"] < ppl["half"] else "**not** the paper's sign")) if {"cla2", "half"} <= ppl.keys() else "not measured"
    out.append("| CLA (arXiv:2405.12981) | 1B parameters, validation perplexity at 5,120 bytes per token: CLA2 13.60, half "
               f"head_dim 13.81 | {pair} |")
    return "\n".join(out) + "\n"


def reading(rows):
    """What the numbers of this run say, in sentences that follow from them."""
    best = sweeps.frontier(rows.values())
    mine = [n for n, r in rows.items() if r["family"] == "ours"]
    losing = [n for n in mine if n not in best]
    out = []
    if losing:
        for n in losing:
            by = min((r for r in rows.values() if r["ratio"] >= rows[n]["ratio"] and r["kl"] <= rows[n]["kl"] and r["recipe"] != n),
                     key=lambda r: r["kl"])
            out.append(f"* `{n}` ({rows[n]['ratio']:.2f}x, KL {rows[n]['kl']:.4f}) is not on the frontier: `{by['recipe']}` has "
                       f"{by['ratio']:.2f}x at {by['kl']:.4f}.")
    elif mine:
        out.append("* All of our recipes that were measured are on the frontier.")
    other = sorted(n for n in best if rows[n]["family"] not in ("ours", "shipped"))
    if other:
        out.append("* Others on the frontier: " + ", ".join(f"`{n}` ({rows[n]['ratio']:.2f}x)" for n in other) + ".")
    dropped = [r for r in rows.values() if r["family"] == "MiniKV" and r["recall_first"] is not None]
    if dropped:
        worst = min(dropped, key=lambda r: r["recall_first"])
        out.append(f"* Dropping tokens costs recall before it costs perplexity: `{worst['recipe']}` gives "
                   f"{100 * worst['recall_first']:.0f} % of the pass keys asked for first and {100 * worst['recall_later']:.0f} % of "
                   f"the later ones, at {100 * (worst['ppl'] / worst['ppl_exact'] - 1):+.1f} % perplexity.")
    # The average token does not need what a pass key needs: KL and recall may disagree.
    for r in (rows[n] for n in mine):
        if r["recall_later"] is None or r["recall_later"] >= rows["exact"]["recall_later"] - .1:
            continue
        best_recall = max((o for o in rows.values() if o["ratio"] >= .97 * r["ratio"]), key=lambda o: o["recall_later"])
        out.append(f"* A low mean KL is not recall: `{r['recipe']}` ({r['ratio']:.2f}x, KL {r['kl']:.4f}) gives "
                   f"{100 * r['recall_later']:.0f} % of the later pass keys (exact: {100 * rows['exact']['recall_later']:.0f} %)"
                   + (f"; `{best_recall['recipe']}` ({best_recall['ratio']:.2f}x, KL {best_recall['kl']:.4f}) gives "
                      f"{100 * best_recall['recall_later']:.0f} %." if best_recall is not r else ", the most at its size."))
    return "\n".join(out) + "\n"


PROTOCOL = """# Quality: what a smaller cache costs

Made by `tests/quality/run`; every number below is from one run of it ({windows} windows).

**Protocol.** Windows of the model's whole context ({context} tokens) cut evenly from held-out books (`valid`, by authors that
neither training nor calibration saw); calibration reads `train` only. Positions from the middle of a window on are scored
against the exact cache of the same engine (bf16): KL(exact || recipe) in nats, share of equal most likely tokens, perplexity.
MiniKV and whatever else keeps a prompt exact takes the first half as its prompt; the rest comes token by token. **Ratio**: the
window's tokens of all layers in plain bf16 / *all* bytes of the sequence: codes, scales, norms, bases of none (they belong to the
model), page headers, the sink, and the whole buffer of the incomplete page, which at {context} tokens is {tail:.0f} % of an exact
sequence; ratios grow with length (`lowkey inspect`). **Bits per element**: bytes of complete pages / stored elements, scales and
norms counted. **Recall**: four pass keys hidden in a window of book text; the first question ends the prompt, the others follow its
answer with the cache as it then is (SCBench's multi-turn, arXiv:2412.10319). **Attention**: time of one token behind 8,192 random
ones against `exact`'s, least of many rounds on this machine: the demo model's cache fits in the processor's own, so this shows
arithmetic, not memory (docs/measurements has cold caches). **Encoding**: time to encode a window / time of its prefill.

Repeat it on any Hugging Face folder:

```
lowkey calibrate --model DIR --text TRAIN --out DIR/profiles/lowkey.profile.safetensors
lowkey evaluate  --model DIR --text HELD_OUT --recipe recipes/exact.yaml recipes/q8.yaml recipes/lowkey-*.yaml --out OUT
```

With `--weights int8` or `int4` the reference keeps the model's own weights: the rows show the error of weights and cache together,
and `exact`'s that of the weights alone.

"""


def training(args, name):
    """The last line of DIR/NAME.log, which train.py wrote."""
    try:
        with open(f"{args.twins}/{name}.log", encoding="utf-8") as f:
            last = f.read().strip().splitlines()[-1]
    except OSError:
        return ""
    tokens = re.search(r"tokens ([\d.]+) M", last)
    return f" Trained by `deploy/demo-model/train.py` on {tokens[1]} M tokens." if tokens else ""


def recall_note(exact):
    return "" if exact["recall_first"] else " It recalls no pass key with any cache, so the columns of recall say nothing."


def write(args, root, bench, rows, others, lines):
    docs = args.docs or args.out
    context = bench.config["max_position_embeddings"]
    mark = sweeps.frontier(rows.values())
    text = PROTOCOL.format(windows=args.windows, context=context, tail=100 * 32 / context)
    text += "## Targets\n\n| target | measured | wanted | |\n|---|---:|---:|---|\n"
    text += "".join(f"| {t['name']} | {t['measured']} | {t['target']} | {t['result']} |\n" for t in lines)
    text += f"\n## The demo model\n\n![quality against bytes](quality-demo.svg)\n\n### Recipes of the tree\n\nBold: no other row of this page has fewer bytes and less KL.\n\n"
    tree = sweeps.shipped(root)
    text += table([r for n, r in rows.items() if n in tree], mark)
    reasons = {}
    for name, reason in bench.skipped.items():
        reasons.setdefault(reason.replace(f"recipe {name}: ", ""), []).append(f"`{name}`")
    text += "".join(f"\n{', '.join(names)}: not measured: {reason}.\n" for reason, names in reasons.items())
    text += "\n### Every baseline's sweep\n\nA baseline is compared at the best setting of its sweep: its line in the plot joins its own frontier.\n"
    for family in families(rows):
        chosen = [r for n, r in rows.items() if r["family"] == family and n not in tree]
        if chosen:
            text += f"\n{family}\n\n{table(chosen, mark)}"
    text += "\n## The papers' figures beside ours\n\nOther models, other tasks: signs and orders can be compared, numbers cannot.\n\n" + papers(rows, others)
    text += "\n## Reading\n\n" + reading(rows)
    for name, (twin, found) in others.items():
        text += (f"\n## Twin `{name}`\n\nPerplexity of the exact cache {found['exact']['ppl_exact']:.2f}; "
                 f"{2 * 2 * len(set(twin.config.get('kv_producer') or range(twin.config['num_hidden_layers']))) * twin.config['num_key_value_heads'] * twin.config['head_dim']} "
                 f"bytes per token in bf16.{training(args, name)}{recall_note(found['exact'])}\n\n![{name}](quality-{name}.svg)\n\n") + table(found.values(), sweeps.frontier(found.values()))
        save(docs, f"quality-{name}.svg", plot.curves(f"{name}: KL against bytes", families(found), "KL to the exact cache, nats"))
    save(docs, "quality-demo.svg", plot.curves("demo model: KL against bytes", families(rows), "KL to the exact cache, nats"))
    save(docs, "quality.md", text)


def save(folder, name, text):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        f.write(text)
