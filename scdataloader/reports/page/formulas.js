// Shares of the draws of classes, and statistics of an epoch of draws.
//
// The formulas are those of scdataloader/sampling/weights.py and tally.py; a test compares both.
"use strict";
const Formulas = (() => {
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // Weight of a class of c cells, before normalisation, by scheme.
  const WEIGHTS = {
    natural: (c) => c,
    uniform: () => 1,
    power: (c, how) => c ** how.tau,
    saturating: (c, how) => c / (how.saturation + c),
  };

  // Share of the draws of each of groups of classes: each of the times[k] classes of group k has sizes[k] cells. `how`
  // has scheme, tau, saturation, and unknown, the share of unknown labels.
  function shares(sizes, times, how) {
    const weights = sizes.map((c) => (c > 0 ? WEIGHTS[how.scheme](c, how) : 0));
    const scale = (1 - (how.unknown || 0)) / sum(weights.map((weight, k) => weight * times[k]));
    return weights.map((weight) => weight * scale);
  }

  // Expected share of repeated draws, and effective cells (Kish, 1965), of an epoch of n draws, by groups of classes of
  // the shares q. even[k] is the effective number of cells of a class by the factors of its cells, as a share of them:
  // 1 if all are drawn equally.
  function epoch(sizes, times, q, n, replacement, even) {
    let distinct = 0;
    let squares = 0; // sum over the cells of the expected square of their draws
    sizes.forEach((c, k) => {
      if (!c || !q[k]) return;
      if (replacement) {
        distinct += times[k] * -c * Math.expm1(n * Math.log1p(-q[k] / c));
        squares += times[k] * (n * q[k] + (n * (n - 1) * q[k] * q[k]) / (c * (even ? even[k] : 1)));
      } else { // each cell is drawn often or often + 1 times
        const often = Math.floor((n * q[k]) / c + 1e-9);
        const more = n * q[k] - often * c;
        distinct += times[k] * Math.min(c, n * q[k]);
        squares += times[k] * ((c - more) * often ** 2 + more * (often + 1) ** 2);
      }
    });
    return { repeated: Math.max(0, 1 - distinct / n), effective: (n * n) / squares };
  }

  // Sums of the values of each row of a tree, listed in preorder, and of all rows below it.
  function withBelow(values, levels) {
    const sums = values.slice();
    const above = []; // the last row of each level
    const parents = levels.map((level, row) => {
      above[level] = row;
      return level ? above[level - 1] : -1;
    });
    for (let row = sums.length - 1; row >= 0; row--) if (parents[row] >= 0) sums[parents[row]] += sums[row];
    return { sums, parents };
  }

  return { shares, epoch, withBelow };
})();
