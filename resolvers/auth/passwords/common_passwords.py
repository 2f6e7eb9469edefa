"""The most common passwords, in lower case."""

COMMON_PASSWORDS = frozenset(
    r"""
!@#$%^&* !@#$%^&*() !qaz2wsx 000000 00000000 000000000 0000000000 0123456789 0987654321 111111
11111111 111111111 1111111111 112233 11223344 1122334455 121212 123123 123123123 123321
123321123 1234 12341234 12344321 12345 123454321 123456 1234567 12345678 123456789 1234567890
12345678910 123456789a 123456789abc 123456789q 12345678a 123456a 123456aa 123456ab 123456abc
123456qwerty 12345qwert 1234abcd 1234qwer 123abc123 123qweasd 135792468 147258369 147852369
159357 159753 1q2w#e$r 1q2w3e4r 1q2w3e4r5t 1q2w3e4r5t6y 1qaz2wsx 1qaz2wsx3edc 1qazxsw2 22222222
246813579 33333333 44444444 55555555 654321 66666666 741852963 7654321 77777777 789456123
87654321 88888888 963852741 987654321 9876543210 99999999 a1234567 a12345678 a123456789
a1b2c3d4 aa123456 aa12345678 aaaaaaaa abc12345 abc123456 abc123abc abcabcabc abcd1234 abcd12345
abcdef12 abcdefgh abcdefghi abcdefghij abracadabra access123 access14 admin123 admin1234
admin12345 admin@123 adminadmin administrator alexander alexander1 alexandra america1 andrew12
android1 angel123 angelina anthony1 apple123 arsenal1 asdf1234 asdf123456 asdfasdf asdfghjk
asdfghjkl asdfghjkl; asdfqwer ashley12 ashley123 australia autumn2023 autumn2024 autumn2025
azerty123 azertyuiop babyboy1 babygirl babygirl1 banana12 bangladesh barcelona baseball
baseball1 basketball batman123 beatles1 benjamin berlin12 bienvenue blackberry blessed1
blink182 blueberry brasil12 buster12 butterfly butterfly1 california canada12 changeit changeme
changeme1 changeme123 charlie1 cheese12 chelsea1 chevrolet chicago1 chocolate chocolate1
christian christine christopher coffee12 computer computer1 contrasena contraseña cookie12
cookie123 correct-horse-battery-staple correcthorsebatterystaple corvette counterstrike
cowboys1 crystal1 cupcake1 daniel12 daniel123 danielle danielle1 december default1 default123
diamond1 dragon12 dragon123 dragonball dragonballz eagles12 elizabeth elizabeth1 england1
facebook facebook1 family12 family123 february ferrari1 flower12 flower123 football football1
football123 forever1 forever21 france12 freedom1 freedom123 friday13 friends1 friends123
germany1 ginger12 godisgood goodbye1 google12 google123 greenday guest123 guestguest harley12
hasło123 heaven12 hello123 hello1234 hellohello helloworld hockey123 hotmail1 hunter12
hunter2hunter2 ichliebedich idontknow iloveu12 iloveyou iloveyou1 iloveyou12 iloveyou123
iloveyou2 india123 indonesia instagram internet internet1 iphone12 ironman1 isabella italia12
january1 jennifer jennifer1 jessica1 jesus123 jesuschrist jesusislord jetaime1 jonathan
jonathan1 jordan123 jordan23 joshua12 juventus1 katherine killer12 killer123 lakers24 letmein1
letmein123 letmeinnow letmeinplease lighting lightning linkedin linkedin1 liverpool liverpool1
login123 loginlogin london12 loveforever lovelove loveme12 loveyou1 malaysia manchester
master12 master123 masterkey matthew1 maverick mercedes mercedes1 metallica metallica1 michael1
michael123 michelle michelle1 mickey12 microsoft microsoft1 midnight midnight1 minecraft
minecraft1 monday123 monkey12 monkey123 moonlight moscow12 motdepasse mustang1 mybaby12
mylove12 mypassword mysecret myspace1 newpassword newyork1 nicholas nicole12 nintendo nirvana1
nopasswd nopassword nothing1 november october1 oldpassword opensesame orange12 p@$$w0rd
p@ssw0rd p@ssw0rd1 p@ssw0rd123 p@ssword pa$$word pa55w0rd pa55word packers1 pakistan pakistan1
panther1 paris123 parola123 passw0rd passw0rd! passw0rd1 password password! password1
password1! password12 password123 password123! password1234 passwort passwort1 passwort123
patricia peanut12 pepper12 philippines phoenix1 pineapple platinum playstation playstation1
pokemon1 pokemon123 porsche1 princess princess1 princess123 pumpkin1 q1w2e3r4 q1w2e3r4t5
q1w2e3r4t5y6 qazwsx123 qazwsxedc qwe123456 qweasdzxc qweqweqwe qwer1234 qwerqwer qwerty
qwerty!@# qwerty1 qwerty12 qwerty123 qwerty123! qwerty1234 qwerty12345 qwertyui qwertyuiop
qwertyuiop123 qwertyuiop[] qwertz123 qwertzuiop rainbow1 raspberry realmadrid redskins
rock&roll rockstar rockstar1 root1234 rootroot samantha samantha1 samsung1 samsung123 scorpion
scorpion1 secret12 secret123 secret1234 senha123 september server123 shadow12 shadow123
slipknot slipknot1 snoopy12 soccer12 soccer123 softball spiderman spiderman1 spring2023
spring2024 spring2025 starcraft startrek1 starwars starwars1 steelers stephanie strawberry
summer12 summer123 summer2020 summer2021 summer2022 summer2023 summer2024 summer2025 sunshine
sunshine1 superman superman1 suzuki12 sweetheart sweetpea1 system32 teamomucho temp1234
temporary tequiero test1234 test12345 testing1 testing123 testtest thomas123 thunder1 tigger12
toor1234 toyota12 trustme1 trustno1 twitter1 user1234 userpassword useruser veronica victoria
victoria1 volleyball wachtwoord warcraft welcome1 welcome1! welcome12 welcome123 welcome123!
welcome1234 whatever whatever1 willkommen windows1 winter12 winter123 winter2020 winter2021
winter2022 winter2023 winter2024 winter2025 worldofwarcraft xbox360xbox yahoo123 yamaha12
yankees1 yourpassword youtube1 zaq12wsx zaq1zaq1 zxcvbnm zxcvbnm,./ zxcvbnm1 zxcvbnm123
    """.split()  # noqa: SIM905 - a list of lines would be pages long
)
