//! What the token may do: asked before anything is sent, and told where the hub refuses.

use anyhow::Result;
use reqwest::StatusCode;
use serde::Deserialize;

use super::ENDPOINT;
use super::answer::Refusal;
use super::fault::Fault;
use super::http::Http;
use crate::error::{Failure, input};
use crate::hub::names;

/// An account with thousands of organisations has less to tell.
const MAX_BYTES: usize = 4 << 20;

/// Whose token it is, as far as the hub tells.
#[derive(Debug, Default, Deserialize)]
struct Account {
    name: Option<String>,
    orgs: Option<Vec<Organisation>>,
    auth: Option<Auth>,
}

#[derive(Debug, Deserialize)]
struct Organisation {
    name: Option<String>,
    #[serde(rename = "roleInOrg")]
    role: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Auth {
    #[serde(rename = "accessToken")]
    token: Option<AccessToken>,
}

#[derive(Debug, Deserialize)]
struct AccessToken {
    role: Option<String>,
    #[serde(rename = "fineGrained")]
    fine_grained: Option<FineGrained>,
}

/// What a token of chosen permissions may do.
#[derive(Debug, Deserialize)]
struct FineGrained {
    scoped: Option<Vec<Scope>>,
}

#[derive(Debug, Deserialize)]
struct Scope {
    entity: Option<Entity>,
    permissions: Option<Vec<String>>,
}

/// A user, an organisation or a repository.
#[derive(Debug, Deserialize)]
struct Entity {
    name: Option<String>,
}

/// Checks, without changing anything, that the token may write to a repository, and make it if `is_new`.
///
/// # Errors
/// `Input` where the hub says that it may not, with what to do; where it does not tell, the first request to write will.
pub(super) async fn check_may_write(http: &Http, repo_id: &str, is_new: bool) -> Result<()> {
    let what = format!("{repo_id} cannot be written");
    let Some(token) = http.token() else {
        let hub = http.endpoint();
        let or_login = if hub == ENDPOINT { ", or log in with `hf auth login`" } else { "" };
        return Err(input(format!("{what}: {hub} wants a token for that; set HF_TOKEN{or_login}.")));
    };
    let account: Account = match http.get_json(http.url(["api", "whoami-v2"]), MAX_BYTES).await {
        Ok(account) => account,
        Err(Fault::Refused(refusal)) if refusal.is_hubs && refusal.status == StatusCode::UNAUTHORIZED => {
            return Err(http.error(Fault::BadToken, &what));
        }
        // A hub that has no such question: the first request to write will tell.
        Err(Fault::Refused(refusal)) if refusal.is_hubs && refusal.status == StatusCode::NOT_FOUND => {
            Account::default()
        }
        Err(fault) => return Err(http.error(fault, &what)),
    };
    match account.objection(repo_id, is_new) {
        None => Ok(()),
        Some(objection) => Err(input(format!("{what}: {objection} (it is that of {}).", token.source()))),
    }
}

/// The organisation of which every namespace is a part: how a hub of one user says that all is his.
pub(crate) const ANY_NAMESPACE: &str = "*";

impl Account {
    /// Why the token may not write, as far as can be told.
    fn objection(&self, repo_id: &str, is_new: bool) -> Option<String> {
        let (namespace, _) = names::repository(repo_id).ok()?;
        let is_namespace = |name: &Option<String>| {
            name.as_deref().is_some_and(|name| name == ANY_NAMESPACE || name.eq_ignore_ascii_case(namespace))
        };
        if let (Some(name), Some(organisations)) = (&self.name, &self.orgs)
            && !name.eq_ignore_ascii_case(namespace)
        {
            let Some(organisation) = organisations.iter().find(|organisation| is_namespace(&organisation.name)) else {
                return Some(format!(
                    "the token belongs to {name:?}, who is not in an organisation {namespace:?}; write the repository as \
                     {name}/NAME, or use the token of {namespace:?}"
                ));
            };
            if organisation.role.as_deref() == Some("read") {
                return Some(format!("{name:?}, whose token it is, may only read in the organisation {namespace:?}"));
            }
        }
        let token = self.auth.as_ref()?.token.as_ref()?;
        match token.role.as_deref()? {
            "read" => {
                Some("the token may only read; make one that may write, at the hub's settings under tokens".to_owned())
            }
            "fineGrained" => {
                let scopes = token.fine_grained.as_ref()?.scoped.as_ref()?;
                let may_write =
                    |scope: &&Scope| scope.permissions.iter().flatten().any(|permission| permission == "repo.write");
                let entities = scopes.iter().filter(may_write).filter_map(|scope| scope.entity.as_ref());
                let names: Vec<_> = entities.filter_map(|entity| entity.name.as_deref()).collect();
                let covers = |wanted: &str| names.iter().any(|name| name.eq_ignore_ascii_case(wanted));
                let is_covered = covers(namespace) || (!is_new && covers(repo_id));
                (!is_covered).then(|| {
                    let missing = if is_new { "make repositories of" } else { "write to the repositories of" };
                    format!("the token may not {missing} {namespace:?}; give it that permission at the hub's settings")
                })
            }
            _ => None,
        }
    }
}

/// A request to write that came to nothing, as an error; `what` begins its sentence: "a/b could not be uploaded".
pub(super) fn write_error(http: &Http, fault: Fault, what: &str) -> anyhow::Error {
    // What a storage says, or who else sits at the address, is not the hub's word on us.
    let Fault::Refused(refusal @ Refusal { is_hubs: true, .. }) = &fault else { return http.error(fault, what) };
    let hub = http.endpoint();
    let said = if refusal.message.is_empty() { String::new() } else { format!(" ({})", refusal.message) };
    match (refusal.status.as_u16(), http.token()) {
        (401 | 403, None) => {
            input(format!("{what}: {hub} wants a token for that; set HF_TOKEN, or log in with `hf auth login`."))
        }
        (401 | 403, Some(token)) => input(format!(
            "{what}: {hub} forbids it{said}. The token of {} must be allowed to write there, and the hub must have room left \
             for its owner.",
            token.source()
        )),
        (402 | 413 | 507, _) => input(format!(
            "{what}: {hub} has no room for it{said}. Delete what is not needed there any more, or take another account."
        )),
        (404, _) => {
            Failure::No(format!("{what}: {hub} does not find it, or does not show it to this token{said}")).into()
        }
        _ => http.error(fault, what),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn objection(account: Value, is_new: bool) -> Option<String> {
        serde_json::from_value::<Account>(account).unwrap().objection("Me/model", is_new)
    }

    fn with_role(role: &str) -> Value {
        json!({"name": "me", "orgs": [], "auth": {"accessToken": {"role": role}}})
    }

    fn fine_grained(entity: &str, permission: &str) -> Value {
        let scoped =
            json!([{"entity": {"type": "user", "name": entity}, "permissions": ["repo.content.read", permission]}]);
        json!({"name": "me", "orgs": [], "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": scoped}}}})
    }

    #[test]
    fn only_what_the_hub_tells_against_a_token_is_held_against_it() {
        for (account, is_new) in [
            (json!({}), true),
            (json!({"name": "me"}), true),
            (json!({"name": "ME", "orgs": []}), true),
            (json!({"name": "you"}), true),
            (json!({"name": "you", "orgs": [{"name": "me", "roleInOrg": "write"}, {}]}), true),
            (json!({"name": "you", "orgs": [{"name": "me"}]}), true),
            (with_role("write"), true),
            (with_role("of another kind"), true),
            (fine_grained("me", "repo.write"), true),
            (fine_grained("me/model", "repo.write"), false),
            (json!({"auth": {"accessToken": {"role": "fineGrained"}}}), true),
            (json!({"auth": {}}), true),
        ] {
            assert_eq!(objection(account.clone(), is_new), None, "{account}");
        }
        for (account, is_new, why) in [
            (json!({"name": "you", "orgs": []}), true, "write the repository as you/NAME"),
            (json!({"name": "you", "orgs": [{"name": "them"}]}), true, "belongs to \"you\""),
            (
                json!({"name": "you", "orgs": [{"name": "me", "roleInOrg": "read"}]}),
                true,
                "may only read in the organisation",
            ),
            (with_role("read"), false, "the token may only read"),
            (fine_grained("me", "repo.content.read"), false, "may not write to the repositories"),
            (fine_grained("me/model", "repo.write"), true, "may not make repositories"),
            (fine_grained("me/other", "repo.write"), false, "may not write to the repositories"),
        ] {
            let said = objection(account.clone(), is_new).unwrap_or_default();
            assert!(said.contains(why), "{account}: {said:?}");
        }
    }
}
