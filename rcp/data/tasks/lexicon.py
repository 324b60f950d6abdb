"""Words of the facts task. Every third word of a pool is held out: it occurs in validation and test only."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words("""
Aaron Abigail Adam Adele Adrian Agnes Aidan Alan Albert Alfred Alice Alison Amanda Amber Amelia Amos Amy Andrea Andrew
Angela Anita Anna Anton Arthur Astrid Audrey Barbara Barry Beatrice Ben Bernard Beth Bianca Boris Brandon Brenda Brian
Bridget Bruce Bruno Caleb Calvin Cameron Carl Carla Carmen Caroline Catherine Cecil Celia Charles Charlotte Chloe
Christina Clara Claire Clark Claude Clive Colin Connor Cora Curtis Cynthia Daisy Damian Daniel Daphne David Dean
Deborah Denise Dennis Derek Diana Dominic Donald Dora Doris Dorothy Douglas Duncan Dylan Edgar Edith Edmund Edward
Eileen Elena Elias Eliza Ellen Elliot Elsa Emily Emma Eric Esther Ethan Eugene Eva Evelyn Felix Fiona Frances Francis
Frank Fred Gabriel Gavin Gemma Geoffrey George Gerald Gilbert Gina Gloria Gordon Grace Graham Grant Greta Gregory
Hannah Harold Harriet Harry Hazel Heather Hector Heidi Helen Helga Henry Herbert Hilda Holly Howard Hubert Hugo Ian
Ida Ingrid Irene Iris Isaac Isabel Ivan Ivy Jacob James Jane Janet Jasmine Jason Jean Jeremy Jerome Jill Joan Joel
Johanna John Jonas Jordan Joseph Joyce Judith Julia Julian June Karen Karl Kate Keith Kelly Kenneth Kevin Kurt Lars
Laura Lawrence Leah Leo Leon Leonard Leslie Liam Lillian Linda Lionel Lisa Logan Lorna Louis Louise Lucas Lucy Luke
Lydia Mabel Magnus Malcolm Marcus Margaret Maria Marion Mark Martha Martin Mary Matilda Matthew Maud Maurice Max Megan
Melissa Michael Mildred Milo Miranda Molly Monica Morgan Muriel Nadia Nancy Naomi Natalie Nathan Neil Nelson Nicholas
Nicole Nina Noah Nora Norman Olga Oliver Olivia Oscar Oswald Owen Pamela Patricia Patrick Paul Paula Peggy Penelope
Peter Philip Phoebe Pierre Quentin Rachel Ralph Ramona Raymond Rebecca Regina Rex Richard Rita Robert Robin Roger
Roland Ronald Rosa Rose Roy Rupert Russell Ruth Ryan Sabrina Sally Samuel Sandra Sarah Scott Sebastian Selma Seth
Sharon Sheila Shirley Sidney Silvia Simon Sonia Sophie Stella Stephen Stuart Susan Sylvester Tanya Teresa Terry Thelma
Theodore Thomas Timothy Tina Toby Todd Tom Tracy Trevor Tristan Ursula Valerie Vanessa Vera Vernon Victor Vincent
Viola Violet Virginia Vivian Wallace Walter Wanda Warren Wayne Wendy Wilfred William Winston Xavier Yvonne Zachary Zoe
""")

CITIES = _words("""
Accra Amsterdam Ankara Antwerp Athens Atlanta Auckland Baghdad Bangkok Barcelona Basel Beijing Belfast Belgrade Bergen
Berlin Bogota Bologna Bombay Bordeaux Boston Bremen Brisbane Bristol Brussels Budapest Cairo Calcutta Calgary Canberra
Cardiff Chicago Cologne Copenhagen Dakar Dallas Damascus Delhi Denver Detroit Dresden Dublin Durban Edinburgh Florence
Frankfurt Geneva Genoa Ghent Glasgow Granada Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Jerusalem Kabul
Kiev Kyoto Lagos Leeds Leipzig Lima Lisbon Liverpool London Lyon Madrid Manchester Manila Marseille Melbourne
Memphis Miami Milan Montreal Moscow Munich Nairobi Naples Oslo Ottawa Oxford Palermo Paris Perth Philadelphia Phoenix
Prague Quebec Riga Rome Rotterdam Salzburg Santiago Seattle Seoul Seville Shanghai Singapore Sofia Stockholm Sydney
Tehran Tokyo Toronto Toulouse Turin Utrecht Valencia Vancouver Venice Vienna Vilnius Warsaw Zagreb Zurich
""")

COUNTRIES = _words("""
Albania Algeria Angola Argentina Armenia Australia Austria Bangladesh Belgium Bolivia Brazil Bulgaria Cambodia
Cameroon Canada Chad Chile China Colombia Croatia Cuba Cyprus Denmark Ecuador Egypt England Ethiopia Fiji Finland
France Germany Ghana Greece Guatemala Haiti Hungary Iceland India Indonesia Iran Iraq Ireland Israel Italy Jamaica
Japan Kenya Korea Kuwait Laos Lebanon Liberia Libya Malaysia Mali Mexico Mongolia Morocco Nepal Nicaragua Nigeria
Norway Oman Pakistan Panama Paraguay Peru Poland Portugal Qatar Romania Russia Rwanda Scotland Senegal Serbia Slovakia
Slovenia Somalia Spain Sudan Sweden Switzerland Syria Taiwan Tanzania Thailand Tunisia Turkey Uganda Ukraine Uruguay
Venezuela Vietnam Wales Yemen Zambia Zimbabwe
""")

TRADES = _words("""
accountant actor architect artist astronomer baker banker barber biologist blacksmith builder butcher butler carpenter
chef chemist clerk composer conductor cook dancer detective diplomat driver economist editor electrician engineer
farmer firefighter fisherman florist gardener geologist guard hairdresser historian hunter interpreter janitor
journalist judge librarian locksmith magician mason mechanic miner musician nurse painter pharmacist photographer
physicist pilot plumber poet porter potter printer professor reporter sailor sculptor secretary shepherd singer
soldier surgeon tailor translator waiter writer
""")

FOODS = _words("""
apples bacon bananas beans beef biscuits bread broccoli cabbage cake carrots cheese cherries chocolate corn cucumber
curry eggs fish grapes ham honey lamb lentils lettuce lobster mango mushrooms mussels noodles nuts olives onions
oranges oysters pancakes pasta peaches peanuts pears peas pie pizza popcorn potatoes pudding pumpkin rice salad salmon
shrimp soup spinach steak strawberries stew sushi toast tofu tomatoes trout tuna yogurt
""")

NUMBERS = [str(n) for n in range(11, 100)]
AGES = [str(n) for n in range(17, 96)]

RELATIONS = _words("""
boss friend neighbour teacher doctor cousin landlord dentist coach tutor lawyer partner assistant client rival guest
""")


def pool(words: list[str], held_out: bool) -> list[str]:
    """The words that validation and test draw from (`held_out`), or the disjoint rest, which training draws from."""
    return [word for i, word in enumerate(words) if (i % 3 == 2) == held_out]
