"""The sentences that the server says aloud by itself. They are spoken once and kept (``prerendered``).

``LINES`` are the server's own; ``TRANSLATIONS`` are spoken once a caller has the language and the voice speaks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# By the cue of a BusyCue. ``waiting_N`` is for place N of the waiting room.
LINES: Final[Mapping[str, str]] = {
    "busy": "One moment, please.",
    "waiting": "All our lines are busy. Please hold the line.",
    **{f"waiting_{n}": f"All our lines are busy. You are number {n} in line." for n in range(1, 10)},
    "full": "All our lines are busy. Please call again in a moment.",
    "draining": "I am sorry, I have to end this call. Please call again in a moment.",
    "no_answer": "I am sorry, I have no answer to that.",
    "not_understood": "I am sorry, I did not understand that. Please say it again.",
    "try_again": "I am sorry, I cannot answer just now. Please try again in a moment.",
    "failed": "I am sorry, something went wrong. Please try again.",
}


CUES: Final = tuple(cue for cue in LINES if not cue.startswith("waiting_"))


def _translation(lines: str, waiting: str) -> Mapping[str, str]:
    """``lines``: one for each cue, in the order of ``CUES``. ``waiting``: with the place as ``{n}``."""
    named = dict(zip(CUES, lines.strip().splitlines(), strict=True))
    return {**named, **{f"waiting_{n}": f"{named['waiting']} {waiting.format(n=n)}" for n in range(1, 10)}}


# By the primary subtag of the language.
TRANSLATIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "de": _translation(
        """Einen Moment, bitte.
Alle Leitungen sind belegt. Bitte bleiben Sie dran.
Alle Leitungen sind belegt. Bitte rufen Sie gleich noch einmal an.
Es tut mir leid, ich muss das Gespräch beenden. Bitte rufen Sie gleich noch einmal an.
Es tut mir leid, darauf habe ich keine Antwort.
Es tut mir leid, das habe ich nicht verstanden. Bitte sagen Sie es noch einmal.
Es tut mir leid, ich kann gerade nicht antworten. Bitte versuchen Sie es gleich noch einmal.
Es tut mir leid, etwas ist schiefgegangen. Bitte versuchen Sie es noch einmal.""",
        "Sie sind Nummer {n} in der Schlange.",
    ),
    "fr": _translation(
        """Un instant, s'il vous plaît.
Toutes nos lignes sont occupées. Veuillez patienter.
Toutes nos lignes sont occupées. Veuillez rappeler dans un instant.
Je suis désolé, je dois terminer cet appel. Veuillez rappeler dans un instant.
Je suis désolé, je n'ai pas de réponse à cela.
Je suis désolé, je n'ai pas compris. Veuillez répéter.
Je suis désolé, je ne peux pas répondre pour le moment. Veuillez réessayer dans un instant.
Je suis désolé, une erreur s'est produite. Veuillez réessayer.""",
        "Vous êtes le numéro {n} dans la file.",
    ),
    "es": _translation(
        """Un momento, por favor.
Todas nuestras líneas están ocupadas. Por favor, espere.
Todas nuestras líneas están ocupadas. Por favor, vuelva a llamar en un momento.
Lo siento, tengo que terminar esta llamada. Por favor, vuelva a llamar en un momento.
Lo siento, no tengo respuesta para eso.
Lo siento, no le he entendido. Por favor, repítalo.
Lo siento, ahora mismo no puedo responder. Por favor, inténtelo de nuevo en un momento.
Lo siento, algo ha salido mal. Por favor, inténtelo de nuevo.""",
        "Usted es el número {n} en la cola.",
    ),
    "it": _translation(
        """Un momento, per favore.
Tutte le linee sono occupate. Resti in linea, per favore.
Tutte le linee sono occupate. Richiami tra un momento, per favore.
Mi dispiace, devo chiudere questa chiamata. Richiami tra un momento, per favore.
Mi dispiace, non ho una risposta.
Mi dispiace, non ho capito. Ripeta, per favore.
Mi dispiace, ora non posso rispondere. Riprovi tra un momento, per favore.
Mi dispiace, qualcosa è andato storto. Riprovi, per favore.""",
        "Lei è il numero {n} in coda.",
    ),
    "pt": _translation(
        """Um momento, por favor.
Todas as nossas linhas estão ocupadas. Por favor, aguarde.
Todas as nossas linhas estão ocupadas. Por favor, ligue de novo daqui a pouco.
Lamento, tenho de terminar esta chamada. Por favor, ligue de novo daqui a pouco.
Lamento, não tenho resposta para isso.
Lamento, não entendi. Por favor, repita.
Lamento, não posso responder agora. Por favor, tente de novo daqui a pouco.
Lamento, algo correu mal. Por favor, tente de novo.""",
        "O seu lugar na fila é o número {n}.",
    ),
    "nl": _translation(
        """Een ogenblik, alstublieft.
Al onze lijnen zijn bezet. Blijft u aan de lijn.
Al onze lijnen zijn bezet. Belt u straks nog eens.
Het spijt me, ik moet dit gesprek beëindigen. Belt u straks nog eens.
Het spijt me, daar heb ik geen antwoord op.
Het spijt me, ik heb dat niet verstaan. Zegt u het nog eens.
Het spijt me, ik kan nu niet antwoorden. Probeert u het straks nog eens.
Het spijt me, er ging iets mis. Probeert u het nog eens.""",
        "U bent nummer {n} in de rij.",
    ),
    "pl": _translation(
        """Chwileczkę, proszę.
Wszystkie linie są zajęte. Proszę czekać.
Wszystkie linie są zajęte. Proszę zadzwonić za chwilę.
Przepraszam, muszę zakończyć rozmowę. Proszę zadzwonić za chwilę.
Przepraszam, nie mam na to odpowiedzi.
Przepraszam, nie zrozumiałem. Proszę powtórzyć.
Przepraszam, nie mogę teraz odpowiedzieć. Proszę spróbować za chwilę.
Przepraszam, coś poszło nie tak. Proszę spróbować ponownie.""",
        "Numer w kolejce: {n}.",
    ),
    "ru": _translation(
        """Одну минуту, пожалуйста.
Все линии заняты. Пожалуйста, оставайтесь на линии.
Все линии заняты. Пожалуйста, перезвоните чуть позже.
Извините, мне нужно закончить разговор. Пожалуйста, перезвоните чуть позже.
Извините, у меня нет на это ответа.
Извините, я вас не понял. Пожалуйста, повторите.
Извините, сейчас я не могу ответить. Пожалуйста, попробуйте чуть позже.
Извините, что-то пошло не так. Пожалуйста, попробуйте ещё раз.""",
        "Ваш номер в очереди: {n}.",
    ),
    "zh": _translation(
        """请稍等。
所有线路都忙，请不要挂机。
所有线路都忙，请稍后再拨。
对不起，我必须结束通话，请稍后再拨。
对不起，这个问题我没有答案。
对不起，我没有听懂，请再说一遍。
对不起，我现在无法回答，请稍后再试。
对不起，出了点问题，请再试一次。""",
        "您排在第{n}位。",
    ),
    "ja": _translation(
        """少々お待ちください。
ただいま回線が混み合っております。そのままお待ちください。
ただいま回線が混み合っております。しばらくしてからおかけ直しください。
申し訳ありませんが、通話を終了いたします。しばらくしてからおかけ直しください。
申し訳ありませんが、お答えできません。
申し訳ありませんが、聞き取れませんでした。もう一度お話しください。
申し訳ありませんが、ただいまお答えできません。しばらくしてからもう一度お試しください。
申し訳ありませんが、問題が発生しました。もう一度お試しください。""",
        "順番は{n}番目です。",
    ),
}
