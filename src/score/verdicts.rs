//! Which of two models is the better one, page after page until it is certain.
//!
//! On each page a model wins a part of the batches against its rival. Pages are drawn independently, so that these parts are
//! independent observations of one mean, and a model is the better one if its mean is above one half. For each pair two
//! gamblers bet, one on either model ([`Betting`]): a verdict stands when one of them has become rich enough, and it may be
//! looked for after every page without losing certainty. The level is that of each verdict by itself.

use super::certainty::Betting;
use super::duel::is_win;

/// What is known about a model and a rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the better one.
    Won,
    /// The rival is.
    Lost,
}

/// A model and a rival, by their places among all models.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The model.
    pub model: usize,
    /// The rival.
    pub rival: usize,
    /// Which is better; `None` while that is not certain.
    pub verdict: Option<Verdict>,
    /// Pages looked at until the verdict, or so far.
    pub num_pages: usize,
    /// Batches won by the model and by the rival on these pages.
    pub wins: [u64; 2],
    gamblers: [Betting; 2],
}

/// A model's part in a page: its block, and its loss on each batch.
pub type OnPage<'a> = (u64, &'a [f64]);

impl Pair {
    /// A pair that nothing is known of.
    pub fn new(model: usize, rival: usize) -> Self {
        Self { model, rival, verdict: None, num_pages: 0, wins: [0; 2], gamblers: Default::default() }
    }

    /// Looks at a page, unless the verdict stands. `level` is the certainty, such as 0.95.
    pub fn observe(&mut self, model: OnPage<'_>, rival: OnPage<'_>, epsilon: f64, level: f64) {
        if self.verdict.is_some() {
            return;
        }
        let won = |(block, losses): OnPage<'_>, (rival_block, rival_losses): OnPage<'_>| {
            let batches = std::iter::zip(losses, rival_losses);
            batches.filter(|(loss, other)| is_win(**loss, **other, Some(block), Some(rival_block), epsilon)).count()
        };
        let num_batches = model.1.len().min(rival.1.len()).max(1);
        self.num_pages += 1;
        // That the mean is above one half is what each gambler bets on: of two models that never win he believes neither.
        for (side, num_won) in [won(model, rival), won(rival, model)].into_iter().enumerate() {
            self.wins[side] += num_won as u64;
            self.gamblers[side].observe(num_won as f64 / num_batches as f64);
        }
        self.verdict = match self.gamblers.each_ref().map(|gambler| gambler.is_certain(1.0 - level)) {
            [true, _] => Some(Verdict::Won),
            [false, true] => Some(Verdict::Lost),
            [false, false] => None,
        };
    }
}

/// The pairs that are of interest: each own model with all others, or all pairs where there is no own one. A pair is named
/// from the own model's side; of two own ones, or none, from that of the one that stands first.
pub fn pairs(is_own: &[bool]) -> Vec<Pair> {
    let any_own = is_own.contains(&true);
    let all = (0..is_own.len()).flat_map(|one| (one + 1..is_own.len()).map(move |other| (one, other)));
    all.filter(|&(one, other)| !any_own || is_own[one] || is_own[other])
        .map(|(one, other)| if is_own[other] && !is_own[one] { Pair::new(other, one) } else { Pair::new(one, other) })
        .collect()
}

/// Pages to draw next, having drawn so many: few at first, then as many again as there are, so that no model is read more
/// than some ten times, and at most as many too many are drawn as were needed.
pub fn pages_to_draw(num_drawn: usize, max_pages: usize) -> usize {
    num_drawn.max(4).min(max_pages.saturating_sub(num_drawn))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows a pair pages of ten batches, of which the model wins so many, until there is a verdict.
    fn watch(wins: impl Iterator<Item = usize>, level: f64) -> Pair {
        let mut pair = Pair::new(0, 1);
        for num_won in wins {
            let losses: Vec<f64> = (0..10).map(|batch| if batch < num_won { 3.0 } else { 5.0 }).collect();
            pair.observe((7, &losses), (7, &[4.0; 10]), 0.005, level);
        }
        pair
    }

    #[test]
    fn a_clear_winner_is_known_after_few_pages_and_the_loser_by_the_same() {
        let won = watch(std::iter::repeat_n(10, 40), 0.95);
        assert_eq!(won.verdict, Some(Verdict::Won));
        let lost = watch(std::iter::repeat_n(0, 40), 0.95);
        assert_eq!((lost.verdict, lost.num_pages), (Some(Verdict::Lost), won.num_pages));
        assert_eq!((won.wins, lost.wins), ([10 * won.num_pages as u64, 0], [0, 10 * won.num_pages as u64]));
        // A bet of at most 1.5 wins three quarters a page at most: 20 needs six pages.
        assert!((6..=12).contains(&won.num_pages), "{won:?}");
        let surer = watch(std::iter::repeat_n(10, 40), 0.9999);
        assert!(surer.verdict == Some(Verdict::Won) && surer.num_pages > won.num_pages, "{surer:?}");
    }

    #[test]
    fn equals_stay_undecided() {
        let pair = watch([4, 6, 5, 7, 3].into_iter().cycle().take(300), 0.95);
        assert_eq!((pair.verdict, pair.num_pages, pair.wins), (None, 300, [1500, 1500]));
    }

    #[test]
    fn two_that_never_win_stay_undecided() {
        let mut pair = Pair::new(0, 1);
        for _ in 0..300 {
            pair.observe((7, &[f64::INFINITY; 4]), (7, &[f64::INFINITY; 4]), 0.005, 0.95);
        }
        assert_eq!((pair.verdict, pair.wins), (None, [0, 0]));
    }

    #[test]
    fn the_later_model_must_win_by_more_than_epsilon() {
        let mut pair = Pair::new(0, 1);
        for _ in 0..40 {
            pair.observe((9, &[3.99; 4]), (7, &[4.0; 4]), 0.005, 0.95);
        }
        assert_eq!(pair.verdict, Some(Verdict::Lost));
    }

    /// Each page is won by one of two equal models as a whole: the widest spread there is. Of 2,000 such pairs, looked at after
    /// every one of 100 pages, no more are misjudged than the level allows for each of the two gamblers.
    #[test]
    fn equals_are_rarely_misjudged_however_often_one_looks() {
        let mut bits = 0x2545_f491_4f6c_dd1d_u64;
        let mut coin = || {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            bits >> 63 == 1
        };
        let is_misjudged = |_: &usize| {
            watch((0..100).map(|_| if coin() { 10 } else { 0 }).collect::<Vec<_>>().into_iter(), 0.95).verdict.is_some()
        };
        let num_misjudged = (0..2_000).filter(is_misjudged).count();
        assert!((20..=200).contains(&num_misjudged), "{num_misjudged} of 2,000");
    }

    #[test]
    fn pairs_are_those_of_own_models_if_there_are_any() {
        let named = |is_own: &[bool]| pairs(is_own).iter().map(|pair| (pair.model, pair.rival)).collect::<Vec<_>>();
        assert_eq!(named(&[false, false, false]), [(0, 1), (0, 2), (1, 2)]);
        assert_eq!(named(&[false, true, false]), [(1, 0), (1, 2)]);
        assert_eq!(named(&[false, true, true]), [(1, 0), (2, 0), (1, 2)]);
        assert_eq!(named(&[true]), []);
    }

    #[test]
    fn pages_double_up_to_the_limit() {
        let mut num_drawn = 0;
        let mut chunks = Vec::new();
        while pages_to_draw(num_drawn, 50) > 0 {
            chunks.push(pages_to_draw(num_drawn, 50));
            num_drawn += chunks[chunks.len() - 1];
        }
        assert_eq!(chunks, [4, 4, 8, 16, 18]);
        assert_eq!(pages_to_draw(0, 3), 3);
    }
}
