// A personal head: ridge regression on the principal components of the photos, fitted anew after every rating. The
// penalty is the one whose leave-one-out error is the least; both have closed forms.
"use strict";

(() => {
  const PENALTIES = [1e-3, 1e-2, 1e-1, 1, 10, 100, 1000];
  const FEW = 3; // ratings, below which there is nothing to fit
  const BETTER = 0.95; // of the error of the mean: more is no knowledge of the rater

  /** Components as numbers, by row, from a document that `packed` made. */
  const unpacked = ({ n, d, scale, data }) => {
    const bytes = atob(data);
    const values = new Float32Array(n * d);
    for (let i = 0; i < values.length; i++) values[i] = ((bytes.charCodeAt(i) << 24) >> 24) * scale[i % d];
    return { n, d, values };
  };

  /** The lower triangle L of A = L L', A (d, d) by row. */
  const cholesky = (a, d) => {
    const lower = new Float64Array(d * d);
    for (let i = 0; i < d; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = a[i * d + j];
        for (let k = 0; k < j; k++) sum -= lower[i * d + k] * lower[j * d + k];
        lower[i * d + j] = i === j ? Math.sqrt(sum) : sum / lower[j * d + j];
      }
    }
    return lower;
  };

  /** z with L z = x. */
  const forward = (lower, x, d) => {
    const z = new Float64Array(d);
    for (let i = 0; i < d; i++) {
      let sum = x[i];
      for (let k = 0; k < i; k++) sum -= lower[i * d + k] * z[k];
      z[i] = sum / lower[i * d + i];
    }
    return z;
  };

  /** x with L' x = z. */
  const backward = (lower, z, d) => {
    const x = new Float64Array(d);
    for (let i = d - 1; i >= 0; i--) {
      let sum = z[i];
      for (let k = i + 1; k < d; k++) sum -= lower[k * d + i] * x[k];
      x[i] = sum / lower[i * d + i];
    }
    return x;
  };

  const dot = (a, b) => {
    let sum = 0;
    for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
    return sum;
  };

  /**
   * Ridge with an intercept on rows of {n, d, values}.
   * Returns predictions of all n, how unsure each is (proportional to its standard deviation), what leaving each rating
   * out would have said of it and how far off that was, the same of the mean without any features, and the penalty; null
   * for too few ratings, or if all are the same.
   */
  const fit = ({ n, d, values }, rows, ratings) => {
    const m = rows.length;
    if (m < FEW || ratings.every((rating) => rating === ratings[0])) return null;
    const x = rows.map((row) => values.subarray(row * d, row * d + d));
    const middle = new Float64Array(d);
    for (const row of x) for (let k = 0; k < d; k++) middle[k] += row[k] / m;
    const mean = ratings.reduce((sum, rating) => sum + rating, 0) / m;
    const centred = x.map((row) => Float64Array.from(row, (value, k) => value - middle[k]));
    const gram = new Float64Array(d * d);
    const toRatings = new Float64Array(d);
    centred.forEach((row, i) => {
      for (let a = 0; a < d; a++) {
        toRatings[a] += row[a] * (ratings[i] - mean);
        for (let b = 0; b <= a; b++) gram[a * d + b] += row[a] * row[b];
      }
    });
    let trace = 0;
    for (let k = 0; k < d; k++) trace += gram[k * d + k];
    const unit = trace / d || 1;
    let best = null;
    for (const penalty of PENALTIES) {
      const a = gram.slice();
      for (let k = 0; k < d; k++) a[k * d + k] += penalty * unit;
      const lower = cholesky(a, d);
      const weights = backward(lower, forward(lower, toRatings, d), d);
      const left = centred.map((row, i) => {
        const z = forward(lower, row, d);
        const leverage = Math.min(dot(z, z) + 1 / m, 1 - 1e-9); // 1/m is the intercept's
        return ratings[i] - (ratings[i] - mean - dot(row, weights)) / (1 - leverage);
      });
      const error = left.reduce((sum, value, i) => sum + (value - ratings[i]) ** 2, 0) / m;
      if (best === null || error < best.error) best = { penalty, error, weights, left, lower };
    }
    const predicted = new Float32Array(n);
    for (let i = 0; i < n; i++) {
      let sum = mean;
      for (let k = 0; k < d; k++) sum += (values[i * d + k] - middle[k]) * best.weights[k];
      predicted[i] = sum;
    }
    const unsure = (row) => {
      const z = forward(best.lower, Float64Array.from(values.subarray(row * d, row * d + d), (v, k) => v - middle[k]), d);
      return Math.sqrt(dot(z, z));
    };
    const error = Math.sqrt(best.error);
    // What the mean of the others says of each rating, which correlates with it at -1: no figure to show by itself.
    const without = Math.sqrt(ratings.reduce((sum, rating) => sum + ((rating - mean) * (m / (m - 1))) ** 2, 0) / m);
    return { predicted, unsure, left: best.left, penalty: best.penalty, error, without, knows: error < BETTER * without };
  };

  /** Pearson's correlation; null where one does not vary. */
  const pearson = (a, b) => {
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const [ma, mb] = [mean(a), mean(b)];
    const [da, db] = [a.map((value) => value - ma), b.map((value) => value - mb)];
    const size = Math.sqrt(dot(da, da) * dot(db, db));
    return size > 0 ? dot(da, db) / size : null;
  };

  Explore.ridge = { unpacked, fit, pearson, FEW };
})();
