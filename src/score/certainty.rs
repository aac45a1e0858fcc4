//! How sure a comparison is, however often one looks: tests and bounds that hold after every observation at once.
//!
//! - [`Betting`]: whether the mean of numbers in `[0, 1]` is above one half, by a bet. Exact.
//! - [`exact_bound`]: what the mean of numbers in `[-1, 1]` exceeds, by one bet for each mean it could have. Exact too, and
//!   slow to be certain where the numbers vary much less than they might.
//! - [`asymptotic_bound`]: what the mean of numbers of any kind exceeds, by how much they have varied: much the sharpest,
//!   and right as far as what has been seen tells what is to come. Its three precautions are explained there.
//!
//! Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024;
//! Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
//! sequences", Annals of Statistics 2024; Hall, "On the removal of skewness by transformation", JRSS-B 1992.

/// The largest bet, as part of what can be lost: an observation of 0 still leaves a quarter of the wealth.
const MAX_BET: f64 = 0.75;

/// Observations before an asymptotic bound says anything.
const LEAST_BURN_IN: usize = 30;
/// Of a kind of observation that comes once in so many, one has been seen at the end of the burn-in, but for the
/// probability of error.
const RAREST_SEEN: f64 = 6.0;
/// The number of observations at which the asymptotic bound is tuned to be sharpest, as far as its probability of error
/// lets it.
const TUNED_TO: f64 = 50.0;

/// A gambler who bets that the mean of independent observations in `[0, 1]` is above one half. If it is not, his wealth, 1
/// at the start, ever reaches `1 / alpha` with a probability of at most `alpha`: then the mean is above one half with
/// certainty `1 - alpha`, whenever that happens.
#[derive(Clone, Debug, Default)]
pub struct Betting {
    num: u64,
    sum: f64,
    sum_of_squares: f64,
    log_wealth: f64,
    most_log_wealth: f64,
}

impl Betting {
    /// Takes an observation, clamped to `[0, 1]`; what is not a number counts as 0.
    pub fn observe(&mut self, observation: f64) {
        let observation = if observation.is_nan() { 0.0 } else { observation.clamp(0.0, 1.0) };
        self.log_wealth += (self.bet() * (observation - 0.5)).ln_1p();
        self.most_log_wealth = self.most_log_wealth.max(self.log_wealth);
        self.num += 1;
        self.sum += observation;
        self.sum_of_squares += observation * observation;
    }

    /// The natural logarithm of the wealth.
    pub fn log_wealth(&self) -> f64 {
        self.log_wealth
    }

    /// The largest wealth there has been.
    pub fn most_wealth(&self) -> f64 {
        self.most_log_wealth.exp()
    }

    /// Whether the mean is above one half, but for the probability `alpha`. Once certain it stays so.
    pub fn is_certain(&self, alpha: f64) -> bool {
        self.most_log_wealth >= -alpha.ln()
    }

    /// The bet on the next observation, by what has been observed so far and, lest one observation decides, two made-up
    /// ones at 0 and 1.
    fn bet(&self) -> f64 {
        let num = self.num as f64 + 2.0;
        let mean = (self.sum + 1.0) / num;
        let variance = ((self.sum_of_squares + 1.0) / num - mean * mean).max(0.0);
        let edge = mean - 0.5;
        (edge / (variance + edge * edge)).clamp(0.0, MAX_BET / 0.5)
    }
}

/// What the mean behind independent samples in `[-1, 1]` exceeds, but for the probability `alpha`, whatever their
/// distribution and however often one looks. Samples outside are clamped, and what is not a number counts as -1.
///
/// For each mean that they could have a gambler bets that it is larger; the means at which he ever becomes rich are refuted.
/// His bets rest on earlier samples, and not on the mean he bets against but for what he can lose, so that he never has
/// more against a larger mean: the refuted ones are an interval.
pub fn exact_bound(samples: &[f64], alpha: f64) -> f64 {
    let unit: Vec<f64> = (samples.iter())
        .map(|sample| if sample.is_nan() { 0.0 } else { (sample.clamp(-1.0, 1.0) + 1.0) / 2.0 })
        .collect();
    // What is bet before the limit by what can be lost: much where little varies.
    let log_needed = -alpha.ln();
    let (mut sum, mut sum_of_squares) = (0.5, 0.25);
    let bets: Vec<f64> = std::iter::zip(1u32.., &unit)
        .map(|(number, sample)| {
            let number = f64::from(number);
            let bet = (2.0 * log_needed / (sum_of_squares * (number + 1.0).ln())).sqrt();
            sum += sample;
            sum_of_squares += (sample - sum / (number + 1.0)).powi(2);
            bet
        })
        .collect();
    let refuted = |mean: f64| {
        let mut log_wealth = 0.0;
        std::iter::zip(&unit, &bets).any(|(sample, bet)| {
            log_wealth += (bet.min(MAX_BET / mean) * (sample - mean)).ln_1p();
            log_wealth >= log_needed
        })
    };
    let (mut low, mut high) = (0.0, 1.0);
    while high - low > 1e-9 {
        let middle = (low + high) / 2.0;
        if refuted(middle) { low = middle } else { high = middle }
    }
    2.0 * low - 1.0
}

/// Samples that [`asymptotic_bound`] needs at least: 30, and so many that a bad one, if they come once in six, has been
/// among them but for the probability `alpha`.
pub fn burn_in(alpha: f64) -> usize {
    // What is not a number becomes 0, and what is infinite the largest one.
    LEAST_BURN_IN.max((RAREST_SEEN * -alpha.ln()).ceil() as usize)
}

/// What the mean behind independent samples exceeds, but for the probability `alpha`, however often one looks; `None` before
/// the [`burn_in`]. Samples that are all equal are taken at their word.
///
/// It is the one-sided asymptotic confidence sequence, at half the probability of error, for it is asymptotic: with few or
/// skewed samples it errs more often than it says. Left skew is the dangerous kind, a rare bad sample that has not come yet
/// or has come too seldom, and the more so the smaller `alpha`. Three precautions keep twenty bounds with
/// `alpha_k = alpha / (k (k + 1))` below `alpha` together with a skewness of -2, and nearly so with -6:
/// - the margin grows as if the deviation were as uncertain as Student's;
/// - it grows with the samples' own left skewness, by somewhat more than Hall's first-order correction of the t statistic,
///   for a sample's skewness is mostly less than that behind it;
/// - the burn-in grows with the certainty that is asked for.
pub fn asymptotic_bound(samples: &[f64], alpha: f64) -> Option<f64> {
    let moments = Moments::of(samples).filter(|_| samples.len() >= burn_in(alpha))?;
    let num = samples.len() as f64;
    let margin = normal_margin(num, alpha / 2.0);
    let z = margin * num.sqrt();
    let for_deviation = (1.0 + margin * margin).sqrt();
    let for_skewness = 1.0 + (-moments.skewness).max(0.0) * z / (2.0 * num.sqrt());
    Some(moments.mean - moments.deviation * margin * for_deviation * for_skewness)
}

/// What the mean stays below, but for the probability `alpha`: [`asymptotic_bound`] mirrored.
pub fn asymptotic_upper_bound(samples: &[f64], alpha: f64) -> Option<f64> {
    let mirrored: Vec<f64> = samples.iter().map(|sample| -sample).collect();
    asymptotic_bound(&mirrored, alpha).map(|bound| -bound)
}

/// The margin of the asymptotic confidence sequence for observations of deviation 1.
fn normal_margin(num: f64, alpha: f64) -> f64 {
    let log = -2.0 * alpha.ln();
    let rho_squared = (log + log.ln() + 1.0) / TUNED_TO;
    let grown = num * rho_squared + 1.0;
    (2.0 * grown / (num * num * rho_squared) * (grown.sqrt() / (2.0 * alpha)).ln_1p()).sqrt()
}

/// Mean, deviation and skewness of samples.
struct Moments {
    mean: f64,
    deviation: f64,
    skewness: f64,
}

impl Moments {
    /// `None` for fewer than three samples, which have no skewness.
    fn of(samples: &[f64]) -> Option<Self> {
        let [first, _, _, ..] = samples else { return None };
        if samples.iter().all(|sample| sample == first) {
            return Some(Self { mean: *first, deviation: 0.0, skewness: 0.0 });
        }
        let num = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / num;
        let central = |power: i32| samples.iter().map(|sample| (sample - mean).powi(power)).sum::<f64>() / num;
        let variance = central(2);
        let skewness = central(3) / variance.powf(1.5) * (num * (num - 1.0)).sqrt() / (num - 2.0);
        Some(Self { mean, deviation: (variance * num / (num - 1.0)).sqrt(), skewness })
    }
}
