//! Accounts of the chain and their addresses: 32 bytes, written in SS58 with Bittensor's prefix 42.

use anyhow::Result;
use subxt::utils::AccountId32;

use crate::chain::Hotkey;
use crate::error::input;

/// The account of an address; the error is a sentence about what is wrong with it.
pub fn parse(address: &str) -> Result<AccountId32, String> {
    let account: AccountId32 = address.parse().map_err(|_| {
        format!(
            "`{}` is no address: one has 48 characters and begins with 5",
            address.chars().take(64).collect::<String>()
        )
    })?;
    // The parser takes the addresses of every chain.
    if account.to_string() != address {
        return Err(format!("`{address}` is an address of another chain: Bittensor's begin with 5"));
    }
    Ok(account)
}

/// The address of an account.
pub fn address(account: &AccountId32) -> Hotkey {
    account.to_string()
}

/// The longest name of a hotkey.
const MAX_HOTKEY_BYTES: usize = 64;

/// Refuses what can neither be an address nor a hotkey's name on a ledger, and so not the name of a file of it.
pub(crate) fn check_hotkey(hotkey: &str) -> Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if hotkey.is_empty() || hotkey.len() > MAX_HOTKEY_BYTES || !hotkey.bytes().all(is_allowed) {
        return Err(input(format!(
            "`{}` is no name of a hotkey: it must be of 1 to {MAX_HOTKEY_BYTES} letters (a to z), digits, dots, hyphens and \
             underscores",
            hotkey.escape_debug()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_address_is_taken_as_bittensor_writes_it_and_no_other() {
        let alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        assert_eq!(address(&parse(alice).unwrap()), alice);
        // The same account as Polkadot writes it, a letter changed, a name.
        let polkadots = parse("15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5").unwrap_err();
        assert!(polkadots.contains("another chain"), "{polkadots}");
        for wrong in ["5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQZ", "miner", ""] {
            assert!(parse(wrong).unwrap_err().contains("is no address"));
        }
    }
}
