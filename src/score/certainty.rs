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
const RAREST_SEEN: f64 = 12.0;
/// Observations after which it has been waited long enough, however certain one must be.
const MOST_BURN_IN: usize = 100;
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

/// Samples that [`asymptotic_bound`] needs at least: 30, and so many that a bad one, if they come once in twelve, has been
/// among them but for the probability `alpha`; never more than 100.
pub fn burn_in(alpha: f64) -> usize {
    // What is not a number becomes 0, and what is infinite the largest one.
    let num = (RAREST_SEEN * -alpha.ln()).ceil() as usize;
    num.clamp(LEAST_BURN_IN, MOST_BURN_IN)
}

/// What the mean behind independent samples exceeds, but for the probability `alpha`, however often one looks; `None` before
/// the [`burn_in`]. Samples that are all equal are taken at their word.
///
/// It is the one-sided asymptotic confidence sequence, at half the probability of error, for it is asymptotic: with few or
/// skewed samples it errs more often than it says. Left skew is the dangerous kind, a rare bad sample that has not come yet
/// or has come too seldom, and the more so the smaller `alpha`. Three precautions keep twenty bounds with
/// `alpha_k = alpha / (k (k + 1))` below `alpha` together with a skewness of -2, be it a long tail or one bad sample in
/// fourteen:
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::random::{derive, fill_normal, uniform};

    /// Numbers in `[0, 1)`.
    fn uniforms(seed: u64, num: usize) -> Vec<f64> {
        (0..num as u64).map(|index| f64::from(uniform(seed, 0, index))).collect()
    }

    fn normals(seed: u64, num: usize) -> Vec<f64> {
        let mut numbers = vec![0.0; num];
        fill_normal(derive(seed, 1), 1.0, &mut numbers);
        numbers.into_iter().map(f64::from).collect()
    }

    /// Numbers in `[0, 1]` of mean one half: wins and losses, all there is, and many small wins with seldom a great loss.
    const FAIR_GAMES: [fn(f64) -> f64; 3] = [
        |uniform| if uniform < 0.5 { 1.0 } else { 0.0 },
        |uniform| uniform,
        |uniform| if uniform < 0.1 { 0.0 } else { 0.5 / 0.9 },
    ];

    /// By hand: the second bet is (1/6) / (2/9 + 1/36) = 2/3, the third (1/4) / (3/16 + 1/16) = 1.
    #[test]
    fn a_gambler_bets_by_what_he_has_seen() {
        let mut betting = Betting::default();
        for observation in [1.0, 1.0, 0.0] {
            betting.observe(observation);
        }
        assert!((betting.log_wealth - (4.0f64 / 3.0 * 0.5).ln()).abs() < 1e-12);
        assert!((betting.most_wealth() - 4.0 / 3.0).abs() < 1e-12);
        // Once certain, always certain, and not of more than that.
        assert!(betting.is_certain(0.76) && !betting.is_certain(0.74));
        // Whatever else comes is a loss, and never makes him bet against himself.
        betting.observe(f64::NAN);
        assert!(betting.log_wealth.is_finite() && betting.log_wealth < (2.0f64 / 3.0).ln());
    }

    /// Peeking after each of 300 observations; of 2,000 trials the standard error at 5 % is 0.5 %.
    #[test]
    fn a_fair_game_makes_a_gambler_rich_as_seldom_as_he_says() {
        for (game, fair) in FAIR_GAMES.into_iter().enumerate() {
            let is_certain = |trial: &u64| {
                let mut betting = Betting::default();
                uniforms(*trial, 300).into_iter().for_each(|uniform| betting.observe(fair(uniform)));
                betting.is_certain(0.05)
            };
            let rate = (0..2_000).filter(is_certain).count() as f64 / 2_000.0;
            assert!((0.005..=0.05).contains(&rate), "game {game}: {rate}");
        }
    }

    #[test]
    fn a_game_that_is_mostly_won_makes_him_rich_soon() {
        let certain_after = |trial: u64, win_rate: f64| {
            let mut betting = Betting::default();
            let wins = uniforms(trial, 1_000).into_iter().map(|uniform| if uniform < win_rate { 1.0 } else { 0.0 });
            wins.take_while(|win| {
                betting.observe(*win);
                !betting.is_certain(0.05)
            })
            .count()
        };
        let mean = |win_rate: f64| (0..200).map(|trial| certain_after(trial, win_rate)).sum::<usize>() as f64 / 200.0;
        assert!(mean(0.9) < 20.0, "{}", mean(0.9));
        assert!(mean(0.7) < 80.0, "{}", mean(0.7));
    }

    #[test]
    fn an_exact_bound_tightens_with_the_samples_and_never_leaves_the_range() {
        assert_eq!(exact_bound(&[], 0.05), -1.0);
        assert_eq!(exact_bound(&[-1.0; 50], 0.05), -1.0);
        assert_eq!(exact_bound(&[f64::NAN; 50], 0.05), -1.0);
        let bounds = [10, 30, 100, 1_000].map(|num| exact_bound(&vec![0.5; num], 0.05));
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{bounds:?}");
        // 100 bets of at most 0.75 / m make 20 of 1 while (0.75 - m) / m > 20^(1/100) - 1 over 0.75: m < 0.721.
        assert!((0.40..0.442).contains(&bounds[2]) && (0.49..0.5).contains(&bounds[3]), "{bounds:?}");
        assert!(exact_bound(&[0.5; 100], 0.001) < bounds[2]);
    }

    /// Peeking four times; of 1,000 trials the standard error at 5 % is 0.7 %.
    #[test]
    fn an_exact_bound_errs_as_seldom_as_it_says_whatever_the_distribution() {
        for (game, fair) in FAIR_GAMES.into_iter().enumerate() {
            let errs = |trial: &u64| {
                let samples: Vec<f64> =
                    uniforms(*trial, 200).into_iter().map(|uniform| 2.0 * fair(uniform) - 1.0).collect();
                [20, 50, 100, 200].iter().any(|num| exact_bound(&samples[..*num], 0.05) > 0.0)
            };
            let rate = (0..1_000).filter(errs).count() as f64 / 1_000.0;
            assert!(rate <= 0.05, "game {game}: {rate}");
        }
    }

    // Computed from the formulas by another program: the margin of 48 symmetric samples, the bound of 49 samples of 1 and
    // one of -49, and bare margins.
    const SYMMETRIC: f64 = 0.5299594734423031;
    const SKEWED: f64 = -9.56694730771185;
    const MARGIN_OF_30: f64 = 0.600_567_219_262_279_4;
    const MARGIN_OF_100: f64 = 0.332_348_319_628_187_17;

    #[test]
    fn an_asymptotic_bound_is_mean_less_margin() {
        let samples: Vec<f64> = (0..48).map(|index| if index % 2 == 0 { 0.2 } else { 0.4 }).collect();
        let bound = asymptotic_bound(&samples, 0.025).expect("48 suffice");
        assert!((bound - (0.3 - 0.1 * SYMMETRIC)).abs() < 1e-9, "{bound}");
        let upper = asymptotic_upper_bound(&samples, 0.025).expect("48 suffice");
        assert!((upper - (0.3 + 0.1 * SYMMETRIC)).abs() < 1e-9, "{upper}");
        // Skew to the left widens the lower bound alone.
        let mut skewed = vec![1.0; 50];
        skewed[20] = -49.0;
        let bound = asymptotic_bound(&skewed, 0.025).expect("50 suffice");
        assert!((bound / SKEWED - 1.0).abs() < 1e-9, "{bound}");
        assert!(asymptotic_upper_bound(&skewed, 0.025).expect("50 suffice") < -SKEWED / 2.0);
        assert_eq!(asymptotic_bound(&[0.25; 45], 0.025), Some(0.25));
        assert!((normal_margin(30.0, 0.0125) - MARGIN_OF_30).abs() < 1e-9);
        assert!((normal_margin(100.0, 0.0125) - MARGIN_OF_100).abs() < 1e-9);
    }

    #[test]
    fn a_bound_waits_the_longer_the_surer_it_must_be() {
        assert_eq!([0.1, 0.025, 0.007, 0.05 / 420.0].map(burn_in), [30, 45, 60, 100]);
        assert_eq!(asymptotic_bound(&[1.0; 44], 0.025), None);
        assert_eq!(asymptotic_bound(&[1.0; 99], 0.05 / 420.0), None);
        assert_eq!(burn_in(0.0), 100);
    }

    /// The part of runs with an error: each asks twenty bounds of samples of mean 0 of their own, the k-th at
    /// 0.05/(k (k + 1)), and looks after 30, 40, ..., 100 samples.
    fn error_rate_of_a_run(
        bound: impl Fn(&[f64], f64) -> Option<f64>,
        samples: impl Fn(u64) -> Vec<f64>,
        num_trials: u64,
    ) -> f64 {
        let mut num_errors = [0; 20];
        for trial in 0..num_trials {
            let samples = samples(trial);
            let alphas = (1..=20).map(|k| 0.05 / f64::from(k * (k + 1)));
            let errs =
                |alpha: f64| (3..=10).any(|look| bound(&samples[..10 * look], alpha).is_some_and(|mean| mean > 0.0));
            // What is not certain with one probability of error is not so with a smaller one.
            let num_wrong = alphas.take_while(|alpha| errs(*alpha)).count();
            num_errors[..num_wrong].iter_mut().for_each(|num| *num += 1);
        }
        1.0 - num_errors.iter().map(|num| 1.0 - f64::from(*num) / num_trials as f64).product::<f64>()
    }

    fn left_skewed(trial: u64) -> Vec<f64> {
        uniforms(trial, 100).into_iter().map(|uniform| 1.0 + (1.0 - uniform).ln()).collect()
    }

    /// One sample in ten is bad, and the others hardly vary: a skewness of -2.6.
    fn rarely_bad(trial: u64) -> Vec<f64> {
        let is_bad = |uniform: f64| uniform < 0.1;
        let sample = |(uniform, noise): (f64, f64)| if is_bad(uniform) { -9.0 } else { 1.0 } + 0.5 * noise;
        std::iter::zip(uniforms(trial, 100), normals(trial, 100)).map(sample).collect()
    }

    fn heavy_tailed(trial: u64) -> Vec<f64> {
        let (numbers, others) = (normals(trial, 100), normals(trial + 1_000_000, 300));
        let chi = others.chunks(3).map(|others| others.iter().map(|other| other * other).sum::<f64>() / 3.0);
        std::iter::zip(numbers, chi).map(|(number, chi)| number / chi.sqrt()).collect()
    }

    /// Of 10,000 trials the standard error of a run's rate is 0.2 % at 3 %.
    #[test]
    fn twenty_bounds_together_err_as_seldom_as_one_may() {
        let rate = |samples: fn(u64) -> Vec<f64>| error_rate_of_a_run(asymptotic_bound, samples, 10_000);
        let rates = [rate(|trial| normals(trial, 100)), rate(left_skewed), rate(rarely_bad), rate(heavy_tailed)];
        assert!(rates.iter().all(|rate| *rate < 0.035), "{rates:?}");
    }

    /// Why the precautions are there.
    #[test]
    fn the_bare_confidence_sequence_errs_too_often_where_bad_samples_are_rare() {
        let bare = |samples: &[f64], alpha: f64| {
            let moments = Moments::of(samples)?;
            Some(moments.mean - moments.deviation * normal_margin(samples.len() as f64, alpha / 2.0))
        };
        let rates = [left_skewed, rarely_bad].map(|samples| error_rate_of_a_run(bare, samples, 10_000));
        assert!(rates.iter().all(|rate| *rate > 0.1), "{rates:?}");
        let rate = error_rate_of_a_run(bare, |trial| normals(trial, 100), 10_000);
        assert!(rate < 0.02, "{rate}");
    }
}
