//! How sure a comparison is, however often one looks: tests that may be asked after every observation.
//!
//! Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024.

/// The largest bet: with it, an observation of 0 still leaves a quarter of the wealth.
const MAX_BET: f64 = 1.5;

/// A gambler who bets that the mean of independent observations in `[0, 1]` is above one half. If it is not, his wealth, 1
/// at the start, ever reaches `1 / alpha` with a probability of at most `alpha`: then the mean is above one half with
/// certainty `1 - alpha`, whenever that happens.
#[derive(Clone, Debug, Default)]
pub struct Betting {
    num: u64,
    sum: f64,
    sum_of_squares: f64,
    log_wealth: f64,
}

impl Betting {
    /// Takes an observation, clamped to `[0, 1]`.
    pub fn observe(&mut self, observation: f64) {
        let observation = observation.clamp(0.0, 1.0);
        self.log_wealth += (self.bet() * (observation - 0.5)).ln_1p();
        self.num += 1;
        self.sum += observation;
        self.sum_of_squares += observation * observation;
    }

    /// The natural logarithm of the wealth.
    pub fn log_wealth(&self) -> f64 {
        self.log_wealth
    }

    /// The bet on the next observation, by what has been observed so far and, lest one observation decides, two made-up
    /// ones at 0 and 1.
    fn bet(&self) -> f64 {
        let num = self.num as f64 + 2.0;
        let mean = (self.sum + 1.0) / num;
        let variance = ((self.sum_of_squares + 1.0) / num - mean * mean).max(0.0);
        let edge = mean - 0.5;
        (edge / (variance + edge * edge)).clamp(0.0, MAX_BET)
    }
}
