import asyncio
from tests.conftest import Client, receive, context
from mail import indexing


async def test_it(ada: Client, bob: Client, root: Client, world):
    print(
        await ada(
            "{ viewer { role user { username address { address } mailboxes { path specialUse total } cursor } } }"
        )
    )
    p = await receive(ada, "Hello duck")
    print(p)
    Q = """query($q:String){ viewer { user { mailbox(by:{specialUse:INBOX}) { total unseen size messages(first: 3, filter:{query:$q}) { totalCount nodes { id subject from { name address } to {address} intro flags seen size text html headers { key value } structure { contentType { value } url } sourceUrl mailbox { path } thread { messageCount subject participants { address } } attachments { filename url } } pageInfo { endCursor hasNextPage } } } } } }"""
    print(await ada(Q, q="duck"))
    await indexing.index(world)
    r = await ada(Q, q="duck")
    print(r)
    print(await ada(Q, q="goose"))
    mid = r["viewer"]["user"]["mailbox"]["messages"]["nodes"][0]["id"]
    print(await bob.raw("query($i:ID!){message(by:{id:$i}){subject}}", i=mid))
    print(
        await ada(
            'mutation($i:ID!){messageUpdate(input:{select:{ids:[$i]},set:{seen:true,addFlags:["work"]},options:{idempotencyKey:"k"}}){updatedCount replayed journalCursor messages{flags} undo{token expiresAt} errors{message}}}',
            i=mid,
        )
    )
    u = await ada(
        'mutation($i:ID!){messageUpdate(input:{select:{ids:[$i]},set:{seen:true,addFlags:["work"]},options:{idempotencyKey:"k"}}){updatedCount replayed journalCursor messages{flags} undo{token expiresAt} errors{message}}}',
        i=mid,
    )
    print(u)
    print(
        await ada(
            "mutation($t:String!){undo(input:{token:$t}){restoredCount errors{message}}}",
            t=u["messageUpdate"]["undo"]["token"],
        )
    )
    print(
        await ada(
            'mutation{mailboxCreate(input:{paths:["A/B"]}){mailboxes{path parent{path}} errors{message}}}'
        )
    )
    print(
        await ada(
            'mutation($i:ID!){messageMove(input:{select:{ids:[$i]},to:{path:"A/B"}}){movedCount moved{oldUid newUid message{mailbox{path total}}} undo{token} errors{message path}}}',
            i=mid,
        )
    )
    d = await ada(
        'mutation{mailboxDelete(input:{mailboxes:[{path:"A/B"}]}){deletedIds errors{message path}}}'
    )
    print(d)
    print(
        await ada(
            "{ viewer { user { messageCount mailboxes { path total unseen size } limits { quota { used allowed } } messages { nodes { subject } } } } }"
        )
    )
    print(await root("{ users { nodes { username mailboxes { path total } } totalCount } }"))
    print(
        await root(
            'mutation{userCreate(input:{address:"eve@new.example",password:"secret pass"}){user{id username domain{name userCount} address{address}} errors{message path}}}'
        )
    )
    print(
        await ada.raw(
            'mutation{userCreate(input:{address:"eve2@new.example",password:"secret pass"}){user{id} errors{message path}}}'
        )
    )
    print(
        await root.raw(
            'mutation{authenticate(input:{username:"eve@new.example",password:"secret pass",token:true}){token expiresAt user{username} errors{message path}}}'
        )
    )
