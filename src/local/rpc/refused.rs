//! What a node answers when it takes a transaction or a question not: the codes and words of Substrate's own node.

use jsonrpsee::types::ErrorObjectOwned;

/// A transaction that the pool does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// A call that this node does not know.
    Call,
    /// It promises a tip, and nobody here has anything to give.
    Payment,
    /// Its number is above the account's next.
    Future,
    /// Its number is below the account's next.
    Stale,
    /// It is not signed by whom it names, or for another chain, program or time.
    BadProof,
    /// It was signed at a block that this node does not know.
    AncientBirthBlock,
}

impl Invalid {
    /// Its number in the chain's own enumeration.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Call => 0,
            Self::Payment => 1,
            Self::Future => 2,
            Self::Stale => 3,
            Self::BadProof => 4,
            Self::AncientBirthBlock => 5,
        }
    }

    /// What an answer says, if it is one of these.
    pub(super) fn of(error: &ErrorObjectOwned) -> Option<Self> {
        let all = [Self::Call, Self::Payment, Self::Future, Self::Stale, Self::BadProof, Self::AncientBirthBlock];
        all.into_iter().find(|invalid| ErrorObjectOwned::from(*invalid) == *error)
    }

    fn words(self) -> &'static str {
        match self {
            Self::Call => {
                "This node takes Commitments.set_commitment with one raw field, and SubtensorModule.set_weights"
            }
            Self::Payment => "Inability to pay some fees (e.g. account balance too low)",
            Self::Future => "Transaction will be valid in the future",
            Self::Stale => "Transaction is outdated",
            Self::BadProof => "Transaction has a bad signature",
            Self::AncientBirthBlock => "Transaction has an ancient birth block",
        }
    }
}

impl From<Invalid> for ErrorObjectOwned {
    fn from(invalid: Invalid) -> Self {
        Self::owned(1010, "Invalid Transaction", Some(invalid.words()))
    }
}

/// Bytes that are no transaction.
pub(super) fn bad_format(why: &str) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(1001, format!("Extrinsic has invalid format: {why}"), None::<()>)
}

/// The very transaction waits already.
pub(super) fn already_imported() -> ErrorObjectOwned {
    ErrorObjectOwned::owned(1013, "Transaction Already Imported", None::<()>)
}

/// Another transaction with the same number waits already.
pub(super) fn too_low_priority() -> ErrorObjectOwned {
    let why = "The transaction has too low priority to replace another transaction already in the pool.";
    ErrorObjectOwned::owned(1014, "Priority is too low", Some(why))
}

/// As many transactions wait as there may.
pub(super) fn pool_is_full() -> ErrorObjectOwned {
    let why = "The transaction couldn't enter the pool because of the limit";
    ErrorObjectOwned::owned(1016, "Immediately Dropped", Some(why))
}

/// A block that is not there, or not any more.
pub(super) fn unknown_block(hash: &str) -> ErrorObjectOwned {
    let hash: String = hash.chars().take(80).collect();
    ErrorObjectOwned::owned(4003, format!("Client error: UnknownBlock: State already discarded for {hash}"), None::<()>)
}

/// A function of the program that is not there.
pub(super) fn unknown_function(name: &str) -> ErrorObjectOwned {
    let name: String = name.chars().take(80).collect();
    let why = format!("Client error: Execution failed: Exported method {name} is not found");
    ErrorObjectOwned::owned(4003, why, None::<()>)
}

/// More at once than a node gives.
pub(super) fn too_many(count: u64, most: u64) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(4002, format!("count exceeds maximum value. value: {count}, max: {most}"), None::<()>)
}

/// Parameters that are not what the method takes.
pub(super) fn bad_parameters(why: &str) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(-32602, "Invalid params", Some(why))
}

/// The ledger would not do it.
pub(super) fn internal(error: &anyhow::Error) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(-32603, format!("Internal error: {error:#}"), None::<()>)
}
