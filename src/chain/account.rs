//! Accounts of the chain and their addresses: 32 bytes, written in SS58 with Bittensor's prefix 42.

use subxt::utils::AccountId32;

use crate::chain::Hotkey;

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
