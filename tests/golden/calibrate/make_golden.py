"""Expected results of kvstore/calibrate from its formulas in numpy float64: make_golden.py > expected.txt

One entry: a line `name rows cols`, then the numbers by rows. Inputs are stored too, so that both sides have the same.
"""
import numpy as np

rng = np.random.default_rng(7)
out = {}

# Moments and bases: 200 rows of 8 features with unequal, correlated spread.
mix = rng.normal(size=(8, 8)) * np.geomspace(3, 0.05, 8)[:, None]
rows = (rng.normal(size=(200, 8)) @ mix + rng.normal(size=8)).astype(np.float32)
x = rows.astype(np.float64)
mean = x.mean(0)
cov = (x - mean).T @ (x - mean) / len(x)
out |= dict(rows=rows, mean=mean[None], covariance=cov)


def signed(vectors):  # columns; the largest component of each is positive
    return vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])


_, u = np.linalg.eigh(cov)
out["pca"] = signed(u[:, ::-1]).T
q = rng.normal(size=(20, 8)) * np.geomspace(0.1, 4, 8)
metric = q.T @ q
floored = metric / (np.trace(metric) / 8) + 0.01 * np.eye(8)
w, v = np.linalg.eigh(floored)
root, inverse = (v * np.sqrt(w)) @ v.T, (v / np.sqrt(w)) @ v.T
_, u = np.linalg.eigh(root @ cov @ root)
u = signed(u[:, ::-1])
out |= dict(metric=metric, weighted_encode=u.T @ root, weighted_decode=u.T @ inverse)

# The attention metric of 4 query heads on 2 KV heads, pairs read from codes: page of 4 tokens, sink of 2.
T, H, K, D, N = 14, 4, 2, 3, 5
qs, ks, vs = (rng.normal(size=(T, n * D)).astype(np.float32) for n in (H, K, K))
wo = rng.normal(size=(N, H * D)).astype(np.float32)
key, value = np.zeros((K, D, D)), np.zeros((K, D, D))
first, step, page, sink, scale = 5, 2, 4, 2, D**-0.5
for h in range(H):
    g = h // (H // K)
    qh, kh, vh, woh = qs[:, h * D : h * D + D], ks[:, g * D : g * D + D], vs[:, g * D : g * D + D], wo[:, h * D : h * D + D]
    qh, kh, vh, woh = (a.astype(np.float64) for a in (qh, kh, vh, woh))
    for t in range(first, T, step):
        a = np.exp(kh[: t + 1] @ qh[t] * scale)
        a /= a.sum()
        o = a @ vh[: t + 1]
        for s in range(sink, t // page * page):
            key[g] += a[s] ** 2 * np.sum((woh @ (vh[s] - o)) ** 2) * np.outer(qh[t], qh[t]) * scale**2
            value[g] += a[s] ** 2 * woh.T @ woh
out |= dict(q=qs, k=ks, v=vs, wo=wo, key_metric=key.reshape(-1, D), value_metric=value.reshape(-1, D))

for name, a in out.items():
    print(name, *a.shape)
    for row in a:
        print(*("%.9g" % value if a.dtype == np.float32 else "%.17g" % value for value in row))
