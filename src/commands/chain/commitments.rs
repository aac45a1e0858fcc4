//! `assay chain commitments` and `assay chain commitment`: what stands committed.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use super::target::Target;
use super::{json_text, one_line};
use crate::chain::{Commitment, Hotkey, account};
use crate::cli::chain::ChainPlaceArgs;
use crate::error::{Failure, input};
use crate::figures::count;
use crate::hex;
use crate::metrics::printer::Printer;
use crate::metrics::table::table;

pub(super) fn all(args: &ChainPlaceArgs, printer: &Printer) -> Result<()> {
    let chain = Target::of(args, printer)?.open()?;
    let all = chain.all_commitments()?;
    let mut all: Vec<(&Hotkey, &Commitment)> = all.iter().collect();
    all.sort_by_key(|(_, commitment)| commitment.block);
    if args.json {
        return printer.result(&json_text(&all.iter().map(|(hotkey, commitment)| json(hotkey, commitment)).collect()));
    }
    let snapshot = chain.snapshot()?;
    let uids: BTreeMap<&str, u16> = snapshot.neurons.iter().map(|neuron| (&*neuron.hotkey, neuron.uid)).collect();
    let row = |(hotkey, commitment): &(&Hotkey, &Commitment)| {
        let uid = uids.get(hotkey.as_str()).map_or_else(String::new, ToString::to_string);
        vec![count(commitment.block), uid, (*hotkey).clone(), shown(commitment)]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    printer.result(&table(&[" block", " uid", "hotkey", "text"], &rows))
}

pub(super) fn one(hotkey: &str, args: &ChainPlaceArgs, printer: &Printer) -> Result<()> {
    let target = Target::of(args, printer)?;
    if !target.is_local() {
        account::parse(hotkey).map_err(input)?;
    }
    let chain = target.open()?;
    let Some(commitment) = chain.commitment(hotkey)? else {
        let hotkey = hotkey.escape_debug();
        return Err(Failure::No(format!("the hotkey {hotkey} has committed nothing on {}", chain.describe())).into());
    };
    printer.result(&match args.json {
        true => json_text(&json(hotkey, &commitment)),
        false => format!("{hotkey} at block {}: {}", count(commitment.block), shown(&commitment)),
    })
}

/// A commitment as scripts read it.
pub(super) fn json(hotkey: &str, commitment: &Commitment) -> Value {
    match std::str::from_utf8(&commitment.bytes) {
        Ok(text) => json!({ "hotkey": hotkey, "block": commitment.block, "text": text }),
        Err(_) => {
            json!({ "hotkey": hotkey, "block": commitment.block, "text": null, "hex": hex::write(&commitment.bytes) })
        }
    }
}

/// A commitment as people read it: its text on one line, or its bytes. Others than plain bytes have none.
pub(super) fn shown(commitment: &Commitment) -> String {
    match std::str::from_utf8(&commitment.bytes) {
        Ok("") => "(no text)".to_owned(),
        Ok(text) => one_line(text),
        Err(_) => hex::write(&commitment.bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_shown_in_hexadecimal() {
        let commitment = |bytes: &[u8]| Commitment { block: 7, bytes: bytes.to_vec() };
        let bytes = commitment(&[0, 0xff, 0x0a]);
        assert_eq!(shown(&bytes), "0x00ff0a");
        assert_eq!(json("h", &bytes), json!({"hotkey": "h", "block": 7, "text": null, "hex": "0x00ff0a"}));
        assert_eq!(shown(&commitment(b"")), "(no text)");
        let text = commitment("\u{e4}\nb".as_bytes());
        assert_eq!(shown(&text), "\u{e4}\u{fffd}b");
        assert_eq!(json("h", &text), json!({"hotkey": "h", "block": 7, "text": "\u{e4}\nb"}));
    }
}
