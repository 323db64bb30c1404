"""The recipes that tests/quality/run compares: those of recipes/, and the sweeps that find every baseline's best
setting. A family is a curve of the plot."""
import glob
import os

AFFINE = "bits: {{quantizer: affine, width: {bits}, group: {group}, key: {{axis: channel}}, value: {{axis: token}}}}\n"
# K and V bits of the four groups of 16 features of the first try (DESIGN, "The page"): plain PCA, static scales, one
# allocation for all heads; bits per element, KL.
FIRST_TRY = [
    ("8888/8888", 8.25, .0001), ("8442/8422", 4.50, .0012), ("8422/4420", 3.50, .0046), ("8420/4220", 3.00, .0114),
    ("4220/4220", 2.25, .0206), ("4200/4200", 1.75, .0455)]
PLAIN_PCA_HALF_KL = .0276  # of the same try: half of the features, no quantizer


def budget_name(bits):
    return "b" + bits.replace("/", "-")


def shipped(root):
    """{name: (family, text)} of recipes/*.yaml."""
    found = {}
    for file in sorted(glob.glob(os.path.join(root, "recipes", "*.yaml"))):
        name = os.path.basename(file)[:-5]
        family = ("ours" if name.startswith("lowkey") else "MatryoshkaKV" if name.startswith("matryoshka") and name[-1] in "05"
                  else "MiniKV" if name.startswith("minikv") else "KV-heads" if name.startswith("kv-heads") else "shipped")
        with open(file, encoding="utf-8") as f:
            text = f.read()
        if "spill: {recipe:" not in text:  # two recipes that are here by themselves
            found[name] = (family, text)
    return found


def curve(budgets):
    """Our recipe at further budgets."""
    return {f"curve-{b}": ("ours", f"profile: curve\nbudget: {b}\nfeatures: {{basis: weighted}}\n"
                           "bits: {quantizer: embedded, width: auto}\nhot: {sink: 4}\n") for b in budgets}


def baselines():
    """{name: (family, text without its name)}; those with a basis take the profile `plain-pca`."""
    found = {}
    for keep in (.75, .5, .25):
        found[f"pca-keep-{keep:.2f}"] = ("plain PCA, ranks", f"profile: plain-pca\nfeatures: {{basis: pca, keep: {keep:.2f}}}\n")
    for bits, _, _ in FIRST_TRY:
        found["pca-" + bits.replace("/", "-")] = (
            "plain PCA, allocated", f"profile: plain-pca\nbudget: {budget_name(bits)}\nfeatures: {{basis: pca}}\n"
            "bits: {quantizer: embedded, width: auto}\nhot: {sink: 4}\n")
    for width in (8, 4, 3, 2):
        found[f"uniform-{width}"] = ("embedded, uniform", f"bits: {{quantizer: embedded, width: {width}}}\nhot: {{sink: 4}}\n")
        found[f"pca-uniform-{width}"] = (
            "embedded, uniform", "profile: plain-pca\nfeatures: {basis: pca}\n"
            f"bits: {{quantizer: embedded, width: {width}}}\nhot: {{sink: 4}}\n")
    for bits in (4, 2):
        for group in (16, 32):
            for sink in (0, 4):
                found[f"kivi-{bits}-group-{group}" + (f"-sink-{sink}" if sink else "")] = (
                    "KIVI-like", AFFINE.format(bits=bits, group=group) + (f"hot: {{sink: {sink}}}\n" if sink else ""))
            found[f"kivi-{bits}-group-{group}-flush-128"] = (
                "KIVI-like", AFFINE.format(bits=bits, group=group) + "hot: {flush: 128}\nstream: {prefill: exact}\n")
    for heavy, recent in ((.125, .125), (.25, .25), (.375, .125), (.125, .375), (.5, .25), (.5, .5)):
        for bits in ((2,) if (heavy, recent) != (.25, .25) else (2, 4)):
            found[f"minikv-{bits}bit-{heavy:g}-{recent:g}"] = (
                "MiniKV", f"tokens: {{score: h2o, budget: {{heavy: {heavy}, recent: {recent}}}}}\n"
                + AFFINE.format(bits=bits, group=16) + "hot: {flush: 128}\nstream: {prefill: exact}\n")
    return found


def frontier(rows):
    """Names of rows that no other row beats in both KL and ratio."""
    return {r["recipe"] for r in rows if not any(
        o["ratio"] >= r["ratio"] and o["kl"] <= r["kl"] and (o["ratio"] > r["ratio"] or o["kl"] < r["kl"]) for o in rows)}
