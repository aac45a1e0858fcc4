//! What the weights of an embedded network pay, by the real program.

use serde_json::Value;

use crate::util::Dir;

/// An epoch of 361 blocks of 12 seconds pays 11.25 TAO, half of it to miners.
const MINERS_PER_DAY: f64 = 11.25 / 2.0 * 86_400.0 / (361.0 * 12.0);

fn assert_close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    // Shares are out of 65,535, rounded down.
    assert!((found - expected).abs() <= 2e-5 * expected.abs().max(1.0), "{found} {expected}");
}

#[test]
fn the_rival_of_a_new_network_earns_all_and_a_win_rate_takes_its_part() {
    let dir = Dir::new();
    dir.assay(&["local", "init"]).run().assert_exit(0);
    let answer = dir.assay(&["emission", "--json"]).run().assert_exit(0).json();
    assert_eq!(answer["has_active_validator"], true);
    assert_close(&answer["seconds_per_epoch"], 4_332.0);
    let miners = answer["miners"].as_array().unwrap();
    let by_uid = |uid: u64| miners.iter().find(|miner| miner["uid"] == uid).unwrap();
    assert_eq!(miners.len(), 2, "{answer}");
    assert_eq!((&by_uid(1)["hotkey"], &by_uid(1)["incentive"]), (&"unigram".into(), &1.0.into()));
    assert_close(&by_uid(1)["incentive_foretold"], 1.0);
    assert_close(&by_uid(1)["tao_per_day"], MINERS_PER_DAY);
    assert_eq!((&by_uid(2)["incentive_foretold"], &by_uid(2)["win_rate"]), (&0.0.into(), &Value::Null));
    let [validator] = answer["validators"].as_array().unwrap().as_slice() else { panic!("{answer}") };
    assert_eq!((&validator["hotkey"], &validator["stake_tao"]), (&"validator".into(), &1_000.0.into()));
    assert_close(&validator["dividends"], 1.0);

    // One rival, whose win rate is then 1 less the model's own: weights in the proportion e^((2 x - 1) / 0.04).
    for (win_rate, share) in [("0.5", 0.5), ("0.52", 1.0 / (1.0 + (-1.0_f64).exp())), ("1", 1.0), ("0", 0.0)] {
        let answer = dir.assay(&["emission", "--json", "--win-rate", win_rate]).run().assert_exit(0).json();
        let [change] = answer["what_if"].as_array().unwrap().as_slice() else { panic!("{answer}") };
        assert_eq!((&change["uid"], &change["hotkey"]), (&2.into(), &"miner".into()));
        assert_close(&change["incentive_foretold"], share);
        assert_close(&change["tao_per_day"], share * MINERS_PER_DAY);
        assert_close(&change["instead_of"]["incentive_foretold"], 0.0);
    }
    dir.assay(&["emission", "--uid", "1", "--win-rate", "0.5"])
        .run()
        .assert_exit(0)
        .assert_stdout_contains("uid 1 (unigram) would have 1.00000 of the incentive and 112.188 TAO a day");
}

#[test]
fn a_second_validator_is_made_by_hand_and_wrong_questions_are_refused() {
    let dir = Dir::with_recipe(2);
    let refused = |args: &[&str], sentence: &str| {
        dir.assay(&["emission"]).args(args).run().assert_exit(2).assert_stderr_contains(sentence);
    };
    refused(&[], "assay local init");
    dir.assay(&["local", "init"]).run().assert_exit(0);
    refused(&["--uid", "7"], "--uid 7: no hotkey is registered as uid 7 on the ledger");
    refused(&["--win-rate", "1.01"], "expected a number from 0 to 1");
    refused(&["--win-rate", "nan"], "expected a number from 0 to 1");
    let of_nobody = ["--recipe", "recipe.yaml", "--set", "chain.hotkeys=[nobody]", "--win-rate", "0.5"];
    refused(&of_nobody, "own hotkeys (nobody) is registered");

    dir.assay(&["local", "register", "second", "--stake", "-1"]).run().assert_exit(2);
    dir.assay(&["local", "register", "second", "--stake", "22000000"]).run().assert_exit(2);
    let registered = dir.assay(&["local", "register", "second", "--stake", "0.5"]).run().assert_exit(0);
    registered.assert_stdout_contains("second has uid 3").assert_stdout_contains("a stake of 0.5 TAO");
    dir.assay(&["local", "register", "second"]).run().assert_exit(0).assert_stdout_contains("second has uid 3");
    let answer = dir.assay(&["emission", "--uid", "3", "--json"]).run().assert_exit(0).json();
    // It has not set weights: no dividends, but it was asked for.
    assert_eq!(answer["validators"].as_array().unwrap().len(), 1);
    let uids: Vec<u64> =
        answer["miners"].as_array().unwrap().iter().map(|miner| miner["uid"].as_u64().unwrap()).collect();
    assert_eq!(uids, [1, 3]);
}
