//! Which account a hotkey of the ledger is: that of its address, or for a name NAME that of the development key //NAME.

use std::collections::HashMap;
use std::str::FromStr;

use anyhow::{Context, Result};
use subxt::utils::AccountId32;
use subxt_signer::SecretUri;
use subxt_signer::sr25519::Keypair;

use crate::chain::{Hotkey, Neuron, account};
use crate::error::input;

/// The 32 bytes of an account.
pub(super) type Account = [u8; 32];

/// The account of a hotkey of the ledger.
pub fn account(hotkey: &str) -> Result<AccountId32> {
    account::parse(hotkey).or_else(|_| development_account(hotkey))
}

/// The account of the development key //NAME.
pub(super) fn development_account(name: &str) -> Result<AccountId32> {
    let context = || format!("`{name}` names no development key");
    let uri = SecretUri::from_str(&format!("//{name}")).with_context(context)?;
    Ok(Keypair::from_uri(&uri).with_context(context)?.public_key().to_account_id())
}

/// The accounts of those hotkeys that were asked for: a key is derived once.
#[derive(Default)]
pub(super) struct Accounts(HashMap<Hotkey, Account>);

impl Accounts {
    /// The account of a hotkey.
    pub(super) fn of(&mut self, hotkey: &str) -> Result<Account> {
        if let Some(known) = self.0.get(hotkey) {
            return Ok(*known);
        }
        let account = account(hotkey)?.0;
        self.0.insert(hotkey.to_owned(), account);
        Ok(account)
    }

    /// Refuses a subnet on which two hotkeys are one account: an address, and the name whose development key it is of.
    pub(super) fn check_distinct(&mut self, neurons: &[Neuron], ledger: &str) -> Result<()> {
        let mut held = HashMap::new();
        for neuron in neurons {
            let Some(other) = held.insert(self.of(&neuron.hotkey)?, neuron) else { continue };
            return Err(input(format!(
                "the hotkeys `{}` (uid {}) and `{}` (uid {}) of {ledger} are one account, which has one place on the chain: \
                 serve a ledger on which only one of the two is registered",
                other.hotkey, other.uid, neuron.hotkey, neuron.uid
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_address_is_its_account_and_a_name_has_the_development_key_of_it() {
        let alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        assert_eq!(account(alice).unwrap().to_string(), alice);
        assert_eq!(account("Alice").unwrap().to_string(), alice);
        // Polkadot's spelling of Alice's account is a name like any other.
        let polkadots = account("15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5").unwrap();
        assert_ne!(polkadots.to_string(), alice);
        for name in ["own.key_2", "1", "-", "a".repeat(64).as_str()] {
            account(name).unwrap();
        }
    }
}
